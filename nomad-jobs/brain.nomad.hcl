# The worker that makes or restores one snapshot on the node of a brain: a batch job per
# snapshot or restore, which orch renders from this file, and removes when it is done.
#
# It has no credentials. What it may do is in its order, in the Nomad variable of the job,
# which only this job and the service can read: URLs that are signed for one object, and a
# public or secret key of one engine. See docs/snapshots.md.

variable "driver" {
  type        = string
  default     = "docker"
  description = "that of engines: docker or raw_exec (ORCH_ENGINE_DRIVER)"
}

variable "restores" {
  type        = bool
  default     = false
  description = "whether the job fills a volume. Otherwise it reads one, beside the engine"
}

job "brain" {
  type = "batch"

  group "brain" {
    count = 1

    # With raw_exec the worker does not claim the volume: its order has the directory. While an
    # engine and a reader of its volume run, Nomad's plan applier rejects every placement on
    # their node ("conflicting claims for host volume with single-writer"; AllocsFit in
    # nomad/structs/funcs.go counts readers, too). And a new volume can be claimed only after
    # its node has reported it, 5 to 10 s later, but be filled at once. A container gets the
    # volume by a claim, so with docker nothing else can be placed on the node until the
    # snapshot is stored, unless the node allows mounts: then orch replaces the claim by a mount.
    dynamic "volume" {
      for_each = var.driver == "docker" ? ["brain"] : []
      labels   = ["brain"]
      content {
        type            = "host"
        source          = "set per job"
        read_only       = !var.restores
        access_mode     = var.restores ? "single-node-single-writer" : "single-node-reader-only"
        attachment_mode = "file-system"
      }
    }

    # Here it waits for the request to copy, while the engine is frozen.
    dynamic "network" {
      for_each = var.restores ? [] : ["copy"]
      content {
        port "copy" {
          to = var.driver == "docker" ? 8000 : -1
        }
      }
    }

    # The copy of the brain is in the allocation's directory until it is stored. Nomad reserves
    # this much and limits nothing.
    ephemeral_disk {
      size = 50
    }

    # A worker that was killed continues in the same directory.
    restart {
      attempts = 3
      interval = "24h"
      delay    = "3s"
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "brain" {
      driver = var.driver

      kill_timeout = "10s"

      # As the engine, whose files it reads or writes.
      user = var.driver == "docker" ? "65532:65532" : ""

      dynamic "config" {
        for_each = var.driver == "docker" ? ["docker"] : []
        content {
          image           = "set per job"
          ports           = var.restores ? [] : ["copy"]
          readonly_rootfs = true
          cap_drop        = ["ALL"]
          security_opt    = ["no-new-privileges"]
          pids_limit      = 64

          # No core dump: it would hold parts of the brain and its key.
          ulimit {
            core = "0:0"
          }
        }
      }

      dynamic "config" {
        for_each = var.driver == "raw_exec" ? ["raw_exec"] : []
        content {
          command = "set per job"
        }
      }

      dynamic "volume_mount" {
        for_each = var.driver == "docker" ? ["brain"] : []
        content {
          volume      = "brain"
          destination = "/brain"
          read_only   = !var.restores
        }
      }

      env {
        ORCH_BRAIN_ORDER = "$${NOMAD_SECRETS_DIR}/order.json"
      }

      # The order names the directory and the address only here, because they are known only
      # on the node.
      template {
        destination = "$${NOMAD_SECRETS_DIR}/order.json"
        change_mode = "noop"
        perms       = "0400"
        uid         = var.driver == "docker" ? 65532 : -1
        gid         = var.driver == "docker" ? 65532 : -1
        data        = "{{ with nomadVar (printf \"nomad/jobs/%s\" (env \"NOMAD_JOB_ID\")) }}{{ .order.Value | replaceAll \"@ALLOC@\" (env \"NOMAD_ALLOC_DIR\") | replaceAll \"@COPY@\" (env \"ORCH_COPY_ADDR\") }}{{ end }}"
        wait {
          min = "10ms"
          max = "50ms"
        }
      }

      # The worker itself needs 192 MB. The kernel also counts the pages of the files that it
      # copies, and writes them to the disk when the limit is reached, while the engine is
      # frozen. So it may use more if Nomad's scheduler allows that
      # (memory_oversubscription_enabled, see docs/install.md); otherwise Nomad ignores
      # memory_max.
      resources {
        cpu        = 100
        memory     = 192
        memory_max = 8192
      }

      # The service reads its report from the log.
      logs {
        max_files     = 1
        max_file_size = 1
      }
    }
  }
}
