# The job of an engine in the scale curve: the settings that the service relies on, but no
# process. It has no template and does not use Vault, because no process reads a key.

variable "driver" {
  type = string
}

variable "key_reload" {
  type = string
}

variable "catalog_path" {
  type = string
}

variable "provider_keys" {
  type = string
}

variable "nomad_logs" {
  type = bool
}

variable "check_interval_s" {
  type = number
}

variable "check_timeout_s" {
  type = number
}

variable "check_max_failures" {
  type = number
}

job "engine" {
  type = "service"

  group "engine" {
    count = 1

    volume "brain" {
      type            = "host"
      source          = "engine"
      access_mode     = "single-node-single-writer"
      attachment_mode = "file-system"
    }

    network {
      port "http" {}
    }

    update {
      max_parallel = 0
    }

    restart {
      attempts = 2
      interval = "10m"
      delay    = "5s"
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    disconnect {
      lost_after = "8760h"
      replace    = false
      reconcile  = "keep_original"
    }

    migrate {
      health_check     = "task_states"
      min_healthy_time = "0s"
    }

    ephemeral_disk {
      size = 10
    }

    task "engine" {
      driver = var.driver

      config {
        run_for = "8760h"
      }

      resources {
        cpu    = 10
        memory = 10
      }

      logs {
        disabled      = true
        max_files     = 1
        max_file_size = 1
      }

      service {
        name     = "engine"
        provider = "consul"
        port     = "http"

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
