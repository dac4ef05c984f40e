# The Nomad job of one engine.
#
# When orch starts, Nomad parses this file once, with the variables below. For each
# engine, orch copies the result and sets the job's ID, name, namespace, node pool, meta
# and ui block; the constraint on the node; the group's count; the volume's source; the
# task's image or command, resources, ENGINE_* and path variables; the service's name and
# meta. Values from users are never parsed as HCL.
#
# To change it, edit a copy, set ORCH_ENGINE_JOB_FILE to the copy's path, and check it with
#   nomad job validate engine.nomad.hcl
# Settings that orch relies on are marked "Relied on". If one of them is missing, the
# service does not start and names it.

variable "driver" {
  type        = string
  default     = "docker"
  description = "docker or raw_exec (ORCH_ENGINE_DRIVER)"
}

variable "key_reload" {
  type        = string
  default     = "restart"
  description = "restart: a new key restarts the process; signal: the process gets SIGHUP and reads ENGINE_KEY_HASH_FILE (ORCH_ENGINE_KEY_RELOAD)"
}

variable "catalog_path" {
  type        = string
  default     = ""
  description = "directory of the shared catalog on every node, read-only in the engine (ORCH_CATALOG_PATH)"
}

variable "provider_keys" {
  type        = string
  default     = ""
  description = "path in Vault of the provider keys; empty: engines get none"
}

variable "pki_path" {
  type        = string
  default     = ""
  description = "path in Vault that issues an engine's certificate (ORCH_ENGINE_PKI_PATH); empty: engines serve plain HTTP (ORCH_ENGINE_TLS)"
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

  # The allocation never moves to another node, because orch sets a constraint on the node
  # with the brain.
  group "engine" {
    count = 1

    # Relied on: a single writer. With single-node-writer, two processes used the same
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

    # Disk space of the allocation in MB. It must be enough for Nomad's two log files of
    # 5 MB, and little more, because an engine's data is in its volume. Nomad's default is 300.
    ephemeral_disk {
      size = 20
    }

    # Relied on: orch watches the health of an engine, not a deployment of Nomad's.
    update {
      max_parallel = 0
    }

    # Nomad restarts a crashed engine twice, even while orch is not running. Then the
    # allocation fails, and orch restarts the engine.
    restart {
      attempts = 2
      interval = "10m"
      delay    = "5s"
      mode     = "fail"
    }

    # Relied on: Nomad must not reschedule the engine.
    reschedule {
      attempts  = 0
      unlimited = false
    }

    # Relied on: a disconnected node's engines are not replaced. Without lost_after an
    # engine is lost as soon as another job on its node has lost_after.
    disconnect {
      lost_after = "8760h"
      replace    = false
      reconcile  = "keep_original"
    }

    # Engines are never migrated, so this only avoids load: by default, the node would list
    # all services and checks of its Consul agent, twice per second for each new engine,
    # until the engine's first check has passed.
    migrate {
      health_check     = "task_states"
      min_healthy_time = "0s"
    }

    task "engine" {
      driver = var.driver

      kill_timeout = "30s"
      kill_signal  = "SIGTERM"

      # Containers do not run as root. The volume belongs to this user.
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

          # No core dump: it would hold the engine's memory and keys, and the node may write
          # it to a place outside of the container.
          ulimit {
            nofile = "16384:16384"
            core   = "0:0"
          }
          logging {
            type = "json-file"
            config {
              max-file = "2"
              max-size = "5m"
            }
          }

          # The root file system is read-only. Files in /tmp count as memory of the engine.
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
        } : {}, var.pki_path == "" ? {} : {
        ENGINE_TLS_FILE = "$${NOMAD_SECRETS_DIR}/engine_tls.pem"
      })

      # Relied on: the hash of the engine's key, from the Nomad variable of its
      # job. With the default waits and splay, a new key arrives after 6 to 9 s. The checksum
      # becomes a meta of the service: it shows in Consul which key a process was started
      # with, for a service that cannot reach the engine. (Relied on with
      # ORCH_BOOT_DETECTION=consul.)
      template {
        destination = "$${NOMAD_SECRETS_DIR}/engine_key.env"
        env         = true
        change_mode = var.key_reload == "signal" ? "noop" : "restart"
        splay       = "0s"
        data        = "ENGINE_KEY_HASH={{ with nomadVar (printf \"nomad/jobs/%s\" (env \"NOMAD_JOB_ID\")) }}{{ .key_hash }}\nENGINE_KEY_CHECKSUM={{ .key_hash.Value | sha256Hex }}{{ end }}\n"
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

      # Relied on with ORCH_ENGINE_TLS=pki: the engine's certificate, its chain and its key,
      # in one file, so that they always fit together. The name is the engine's own, and
      # Vault issues no other to it. The address is for clients that verify the URL's host.
      # After about nine tenths of its life the certificate is replaced; the engine reads
      # the file again, and nothing restarts it. (Not pkiCert: that reads the file before it
      # writes it, as root, and the engine may have put a link in its place.)
      dynamic "template" {
        for_each = var.pki_path == "" ? [] : ["certificate"]
        content {
          destination = "$${NOMAD_SECRETS_DIR}/engine_tls.pem"
          change_mode = "noop"
          perms       = "0400"
          uid         = var.driver == "docker" ? 65532 : -1
          gid         = var.driver == "docker" ? 65532 : -1
          data        = "{{ with secret \"${var.pki_path}\" (printf \"common_name=%s.engine.orch\" (env \"NOMAD_JOB_ID\")) (printf \"ip_sans=%s\" (env \"NOMAD_IP_http\")) }}{{ .Data.certificate }}\n{{ range .Data.ca_chain }}{{ . }}\n{{ end }}{{ .Data.private_key }}\n{{ end }}"
        }
      }

      # Relied on, if engines get provider keys or a certificate: neither a new provider key
      # nor a new Vault token restarts an engine. A new provider key is in the environment from the next
      # start. The service has checked that Nomad can read all values as toJSON quotes them.
      # (once = true would also avoid the restart, but Nomad renders such templates
      # separately, and the group that is rendered last replaces all variables of the
      # other.) The process never gets the Vault token.
      dynamic "vault" {
        for_each = var.provider_keys == "" && var.pki_path == "" ? [] : ["vault"]
        content {
          role         = var.pki_path == "" ? "" : "engine-tls"
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

        # Relied on: the check that watches a running engine. Consul's agents do not know
        # the authority of engines' certificates, and send no key, so they verify none.
        check {
          name                     = "health"
          type                     = "http"
          path                     = "/health"
          protocol                 = var.pki_path == "" ? "" : "https"
          tls_skip_verify          = var.pki_path != ""
          interval                 = "${var.check_interval_s}s"
          timeout                  = "${var.check_timeout_s}s"
          initial_status           = "warning"
          failures_before_critical = var.check_max_failures
        }
      }
    }
  }
}
