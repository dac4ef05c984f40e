# The Nomad job of one engine.
#
# orch has Nomad parse this file once when it starts, with the variables below,
# and sets per engine on a copy of the result: the job's ID, name, namespace,
# node pool, meta and ui block; the constraint on the node; the group's count;
# the volume's source; the task's image or command, resources, ENGINE_* and path
# variables; the service's name and meta. Nothing that a user supplied is ever
# parsed as HCL.
#
# Copy and edit it, name the copy in ORCH_ENGINE_JOB_FILE, and check it with
#   nomad job validate engine.nomad.hcl
# What orch relies on is marked "relied on"; without it the service refuses to
# start and says what is missing.

variable "driver" {
  type        = string
  default     = "docker"
  description = "docker or raw_exec (ORCH_ENGINE_DRIVER)"
}

variable "key_reload" {
  type        = string
  default     = "restart"
  description = "restart: a new key restarts the process; signal: it gets SIGHUP and reads ENGINE_KEY_HASH_FILE (ORCH_ENGINE_KEY_RELOAD)"
}

variable "catalog_path" {
  type        = string
  default     = ""
  description = "shared catalog on every node, read-only in the engine (ORCH_CATALOG_PATH)"
}

variable "provider_keys" {
  type        = string
  default     = ""
  description = "path in Vault of the provider keys; empty: engines get none"
}

variable "nomad_logs" {
  type        = bool
  default     = false
  description = "whether Nomad collects the engine's output, which costs helper processes: about 30 MiB per engine and some of its boot (ORCH_ENGINE_LOGS)"
}

variable "check_interval_s" {
  type    = number
  default = 30
}

variable "check_timeout_s" {
  type    = number
  default = 10
}

variable "check_max_failures" {
  type    = number
  default = 3
}

job "engine" {
  type = "service"

  # A service job moves its allocation to no other node by itself: the brain
  # pins it (the constraint is set per engine).
  group "engine" {
    count = 1

    # Relied on: one writer. With single-node-writer two processes ran on one
    # brain for seconds.
    volume "brain" {
      type            = "host"
      source          = "engine"
      access_mode     = "single-node-single-writer"
      attachment_mode = "file-system"
    }

    network {
      # Relied on: the port's label.
      port "http" {
        to = var.driver == "docker" ? 8000 : -1
      }
    }

    # MB of disk for its allocation: Nomad's two log files of 5 MB, which have to fit, and
    # little more, for what an engine keeps is in its volume. Nomad reserves 300 by default.
    ephemeral_disk {
      size = 20
    }

    # Relied on: health is orch's business, not a deployment's.
    update {
      max_parallel = 0
    }

    # A crash is healed here a little, also while the control plane is away;
    # after that the allocation fails and orch takes over.
    restart {
      attempts = 2
      interval = "10m"
      delay    = "5s"
      mode     = "fail"
    }

    # Relied on: Nomad must not place the engine again by itself.
    reschedule {
      attempts  = 0
      unlimited = false
    }

    # Relied on: a cut network replaces nothing; without lost_after an engine is
    # lost as soon as another job on its node has one.
    disconnect {
      lost_after = "8760h"
      replace    = false
      reconcile  = "keep_original"
    }

    # Nothing migrates an engine. By default its node would ask its Consul agent
    # for all services and checks that it has, twice per second for each new
    # engine, until the engine's first check has passed.
    migrate {
      health_check     = "task_states"
      min_healthy_time = "0s"
    }

    task "engine" {
      driver = var.driver

      kill_timeout = "30s"
      kill_signal  = "SIGTERM"

      # Containers do not run as root; the volume is made for this user.
      user = var.driver == "docker" ? "65532:65532" : ""

      dynamic "config" {
        for_each = var.driver == "docker" ? ["docker"] : []
        content {
          image           = "set per engine"
          ports           = ["http"]
          readonly_rootfs = true
          cap_drop        = ["ALL"]
          security_opt    = ["no-new-privileges"]
          pids_limit      = 256
          logging {
            type = "json-file"
            config {
              max-file = "2"
              max-size = "5m"
            }
          }

          # The root is read-only. What lies in /tmp counts as the engine's memory.
          mount {
            type   = "tmpfs"
            target = "/tmp"
            tmpfs_options {
              size = 67108864 # bytes: 64 MiB
            }
          }

          mounts = var.catalog_path == "" ? [] : [{
            type     = "bind"
            source   = var.catalog_path
            target   = "/catalog"
            readonly = true
          }]
        }
      }

      dynamic "config" {
        for_each = var.driver == "raw_exec" ? ["raw_exec"] : []
        content {
          command = "set per engine"
        }
      }

      dynamic "volume_mount" {
        for_each = var.driver == "docker" ? ["brain"] : []
        content {
          volume      = "brain"
          destination = "/data"
        }
      }

      # With raw_exec orch sets SQLITE_DB_PATH to the volume's path on the node.
      env = merge({
        PORT           = "$${NOMAD_PORT_http}"
        SQLITE_DB_PATH = "/data/brain.sqlite"
        CATALOG_DIR    = var.driver == "docker" ? "/catalog" : var.catalog_path
        }, var.key_reload == "signal" ? {
        ENGINE_KEY_HASH_FILE = "$${NOMAD_SECRETS_DIR}/engine_key_hash"
      } : {})

      # Relied on: the hash of the engine's key, from the Nomad variable of its
      # job. Without the waits and the splay a new key takes 6 to 9 s to arrive.
      template {
        destination = "$${NOMAD_SECRETS_DIR}/engine_key.env"
        env         = true
        change_mode = var.key_reload == "signal" ? "noop" : "restart"
        splay       = "0s"
        data        = "ENGINE_KEY_HASH={{ with nomadVar (printf \"nomad/jobs/%s\" (env \"NOMAD_JOB_ID\")) }}{{ .key_hash }}{{ end }}\n"
        wait {
          min = "10ms"
          max = "50ms"
        }
      }

      dynamic "template" {
        for_each = var.key_reload == "signal" ? ["file"] : []
        content {
          destination   = "$${NOMAD_SECRETS_DIR}/engine_key_hash"
          change_mode   = "signal"
          change_signal = "SIGHUP"
          splay         = "0s"
          perms         = "0444"
          data          = "{{ with nomadVar (printf \"nomad/jobs/%s\" (env \"NOMAD_JOB_ID\")) }}{{ .key_hash }}{{ end }}"
          wait {
            min = "10ms"
            max = "50ms"
          }
        }
      }

      # Relied on, where engines get provider keys: neither a new key nor a new
      # Vault token restarts an engine; a new key is in the environment from its
      # next start on. toJSON: the service checked that Nomad can read the values when
      # they are quoted like that. (once = true would keep the file from being read again, but
      # Nomad runs such templates apart from the others, and the last of the two
      # groups to render replaces all variables of the other.) The process itself
      # never sees the Vault token.
      dynamic "vault" {
        for_each = var.provider_keys == "" ? [] : ["vault"]
        content {
          change_mode  = "noop"
          env          = false
          disable_file = true
        }
      }

      dynamic "template" {
        for_each = var.provider_keys == "" ? [] : ["provider-keys"]
        content {
          destination = "$${NOMAD_SECRETS_DIR}/provider_keys.env"
          env         = true
          change_mode = "noop"
          data        = "{{ with secret \"${var.provider_keys}\" }}{{ range $k, $v := .Data.data }}{{ $k }}={{ $v | toJSON }}\n{{ end }}{{ end }}"
        }
      }

      resources {
        cpu    = 100
        memory = 256
      }

      logs {
        disabled      = !var.nomad_logs
        max_files     = 2
        max_file_size = 5
      }

      service {
        name     = "engine"
        provider = "consul"
        port     = "http"

        # Relied on: the check that watches a running engine.
        check {
          name                     = "health"
          type                     = "http"
          path                     = "/health"
          interval                 = "${var.check_interval_s}s"
          timeout                  = "${var.check_timeout_s}s"
          initial_status           = "warning"
          failures_before_critical = var.check_max_failures
        }
      }
    }
  }
}
