# The service itself as a Nomad job: one replica per node, on port 8000.
#
# The job contains no secrets. They are environment variables in the Nomad variable
# nomad/jobs/orch, which only this job and operators can read, ORCH_ADMIN_KEY and VAULT_TOKEN
# (from a file or a pipe, because others can read a command line):
#
#   nomad var put -in=json nomad/jobs/orch - <orch.json
#
# and, if needed, NOMAD_TOKEN, CONSUL_HTTP_TOKEN, ORCH_DATABASE_URL (required for more
# than one replica), ORCH_SNAPSHOT_ACCESS_KEY and ORCH_SNAPSHOT_SECRET_KEY, and the provider
# keys named in ORCH_ENGINE_ENV_PASSTHROUGH.
#
# On agents with ACLs, the service needs none of these tokens: with -var identity=true it
# uses the workload identity of its task in Nomad, through the socket of the Task API, and
# in Consul; with -var vault_role=orch also in Vault. Nomad renews those for itself and Vault
# in files, which the service reads again. docs/install.md has the policies, the binding rule and the
# role that this needs. They are for a job with this name in the namespace default.
#
#   nomad job run -var image=IMAGE -var 'settings={"ORCH_ENGINE_IMAGE"="..."}' orch.nomad.hcl
#
# After a change of a secret, run it again with another -var generation=...: that
# replaces the replicas one at a time.
#
# Every client that may run it needs max_kill_timeout = "5m" in its client block. By
# default Nomad limits every kill_timeout to 30 s, and another replica must then take over
# the operations in progress.

variable "driver" {
  type        = string
  default     = "docker"
  description = "docker or raw_exec"

  validation {
    condition     = var.driver == "docker" || var.driver == "raw_exec"
    error_message = "The driver must be docker or raw_exec."
  }
}

variable "image" {
  type        = string
  default     = ""
  description = "docker: image of the service, whose entry point is the orch binary"
}

variable "binary" {
  type        = string
  default     = "/usr/local/bin/orch"
  description = "raw_exec: path of the orch binary on every node"
}

variable "count" {
  type        = number
  default     = 1
  description = "number of replicas; more than one need ORCH_DATABASE_URL, and each needs its own node"
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "namespace" {
  type    = string
  default = "default"
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "port" {
  type        = number
  default     = 8000
  description = "port on the node; 0: Nomad chooses one for each replica"
}

variable "canary" {
  type        = number
  default     = 0
  description = "number of replicas of a new version that must be healthy before an old one is replaced; they need ORCH_DATABASE_URL, and free nodes or port = 0"
}

variable "progress_deadline" {
  type        = string
  default     = "10m"
  description = "how long Nomad waits for the next replica to become healthy before it gives an update up; 0s: without limit, for a cluster that gets nodes for the other replicas later"
}

variable "ops_port" {
  type        = number
  default     = -1
  description = "port on the node's address of the listener for operators (plain HTTP, for a private network), which Consul then lists as the service orch-ops, for Prometheus; 0: Nomad chooses it; -1: the listener is on the node's loopback, and not listed"
}

# The agents on the node of each replica.

variable "nomad_addr" {
  type    = string
  default = "http://127.0.0.1:4646"
}

variable "consul_addr" {
  type    = string
  default = "http://127.0.0.1:8500"
}

variable "vault_addr" {
  type    = string
  default = "http://127.0.0.1:8200"
}

variable "agents_tls" {
  type        = string
  default     = ""
  description = "if consul_addr and vault_addr are https: \"ca\", with the certificates of their authorities in the item ca of the Nomad variable nomad/jobs/orch/orch, or \"mutual\", with the items cert and key in addition, for a Consul that requires a client certificate"

  validation {
    condition     = contains(["", "ca", "mutual"], var.agents_tls)
    error_message = "The value must be \"\", \"ca\" or \"mutual\"."
  }
}

variable "identity" {
  type        = bool
  default     = false
  description = "use the task's workload identity in Nomad and Consul, in place of NOMAD_TOKEN and CONSUL_HTTP_TOKEN; nomad_addr is not used then"
}

variable "identity_ttl" {
  type        = string
  default     = "1h"
  description = "lifetime of the identity in Nomad, which Nomad renews when about half of it is left"
}

variable "vault_role" {
  type        = string
  default     = ""
  description = "role of Nomad's workload identities in Vault that has the policy orch; empty: VAULT_TOKEN from nomad/jobs/orch"
}

variable "tls_dir" {
  type        = string
  default     = ""
  description = "directory on every node with tls.crt and tls.key: the service serves HTTPS. Empty: plain HTTP, for something in front of it that ends TLS"
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "ORCH_ variables that are not secret (orch server -help lists them), and other variables of the environment"
}

variable "generation" {
  type        = string
  default     = "1"
  description = "another value replaces the replicas one at a time, as after a changed secret"
}

variable "cpu_mhz" {
  type    = number
  default = 500
}

variable "memory_mb" {
  type    = number
  default = 256
}

locals {
  # Where a replica finds the certificate.
  tls_dir = var.driver == "docker" ? "/tls" : var.tls_dir
  tls = var.tls_dir == "" ? { ORCH_ALLOW_HTTP = "true" } : {
    ORCH_TLS_CERT_FILE = "${local.tls_dir}/tls.crt"
    ORCH_TLS_KEY_FILE  = "${local.tls_dir}/tls.key"
  }
  # In files of the task, because a container does not see those of the node.
  agents_dir = "$${NOMAD_SECRETS_DIR}/agents"
  agents_files = {
    ""     = []
    ca     = ["ca"]
    mutual = ["ca", "cert", "key"]
  }[var.agents_tls]
  agents = merge(
    var.agents_tls == "" ? {} : { CONSUL_CACERT = "${local.agents_dir}/ca.pem", VAULT_CACERT = "${local.agents_dir}/ca.pem" },
    var.agents_tls != "mutual" ? {} : { CONSUL_CLIENT_CERT = "${local.agents_dir}/cert.pem", CONSUL_CLIENT_KEY = "${local.agents_dir}/key.pem" },
  )

  vault = var.vault_role == "" ? {} : { VAULT_TOKEN_FILE = "$${NOMAD_SECRETS_DIR}/vault_token" }

  # Nomad sets CONSUL_HTTP_TOKEN itself: the token of the task's login, which it does not
  # replace while the task runs.
  nomad = var.identity ? {
    NOMAD_ADDR       = "unix://$${NOMAD_SECRETS_DIR}/api.sock"
    NOMAD_TOKEN_FILE = "$${NOMAD_SECRETS_DIR}/nomad_orch.jwt"
  } : { NOMAD_ADDR = var.nomad_addr }

  ops = var.ops_port < 0 ? {} : {
    ORCH_OPS_ADDR   = "$${NOMAD_ADDR_ops}"
    ORCH_ALLOW_HTTP = "true"
  }

  check_protocol = var.tls_dir == "" ? "http" : "https"

  # How long a replica serves on while it is not ready, and finishes what is in flight
  # (scheduler.LongestOperation: a boot and 115 s); and 15 s to give its session up.
  kill_timeout_s = lookup(var.settings, "ORCH_DRAIN_DELAY_S", "5") + lookup(var.settings, "ORCH_BOOT_TIMEOUT_S", "60") + 115 + 15
}

job "orch" {
  type        = "service"
  datacenters = var.datacenters
  namespace   = var.namespace
  node_pool   = var.node_pool

  # Replicas are replaced one after another, the next when the new one responds. The old
  # one may drain for kill_timeout before the new one gets its port. If a new one does not
  # become healthy, Nomad returns to the version of before. No old one ends before all
  # canaries are healthy.
  update {
    max_parallel      = 1
    canary            = var.canary
    auto_promote      = var.canary > 0
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "8m"
    progress_deadline = var.progress_deadline
    auto_revert       = true
  }

  meta {
    generation = var.generation
  }

  group "orch" {
    count = var.count

    network {
      port "http" {
        static = var.port
      }

      dynamic "port" {
        for_each = var.ops_port < 0 ? [] : ["ops"]
        labels   = [port.value]
        content {
          static = var.ops_port
        }
      }
    }

    # The audit log of a single replica, which is kept over updates and moves, but lost with
    # its node. To avoid that, set ORCH_DATABASE_URL in nomad/jobs/orch to a PostgreSQL.
    ephemeral_disk {
      size    = 1024
      sticky  = true
      migrate = true
    }

    # A crashed replica is restarted on its node three times, then on another one.
    restart {
      attempts = 3
      interval = "5m"
      delay    = "5s"
      mode     = "fail"
    }

    reschedule {
      delay          = "10s"
      delay_function = "exponential"
      max_delay      = "5m"
      unlimited      = true
    }

    service {
      name     = "orch"
      provider = "consul"
      port     = "http"

      # Passes if it can respond to admits of running engines.
      check {
        name            = "ready"
        type            = "http"
        path            = "/ready"
        protocol        = local.check_protocol
        tls_skip_verify = true # of this node's own replica
        interval        = "2s" # below ORCH_DRAIN_DELAY_S
        timeout         = "2s"
      }

      # Passes if it responds to HTTP at all. A replica that hangs is restarted. One that is
      # only not ready waits for Nomad or Consul, so a restart would not help.
      check {
        name            = "live"
        type            = "http"
        path            = "/live"
        protocol        = local.check_protocol
        tls_skip_verify = true
        interval        = "10s"
        timeout         = "5s"

        check_restart {
          limit = 6
          grace = "60s"
        }
      }
    }

    # /metrics is there, without a key.
    dynamic "service" {
      for_each = var.ops_port < 0 ? [] : ["orch-ops"]
      content {
        name     = service.value
        provider = "consul"
        port     = "ops"
        tags     = ["prometheus", "metrics"]

        check {
          name     = "ops"
          type     = "http"
          path     = "/live"
          interval = "10s"
          timeout  = "5s"
        }
      }
    }

    task "orch" {
      driver = var.driver

      # Consul no longer names the replica from the beginning of this delay on; then it drains.
      shutdown_delay = "3s"
      kill_signal    = "SIGTERM"
      kill_timeout   = "${local.kill_timeout_s}s"

      # The container uses the host's network, because the agents listen on the node's
      # loopback, and engines may, too.
      dynamic "config" {
        for_each = var.driver == "docker" ? ["docker"] : []
        content {
          image           = var.image
          args            = ["server"]
          network_mode    = "host"
          readonly_rootfs = true
          cap_drop        = ["ALL"]
          security_opt    = ["no-new-privileges"]
          volumes         = var.tls_dir == "" ? [] : ["${var.tls_dir}:/tls:ro"]
        }
      }

      dynamic "config" {
        for_each = var.driver == "raw_exec" ? ["raw_exec"] : []
        content {
          command = var.binary
          args    = ["server"]
        }
      }

      env = merge({
        ORCH_ADDR            = "$${NOMAD_ADDR_http}"
        ORCH_LOG_JSON        = "true"
        ORCH_DATABASE_URL    = "sqlite://$${NOMAD_ALLOC_DIR}/data/audit.db"
        ORCH_NOMAD_NAMESPACE = var.namespace
        CONSUL_HTTP_ADDR     = var.consul_addr
        VAULT_ADDR           = var.vault_addr
      }, local.nomad, local.agents, local.tls, local.vault, local.ops, var.settings)

      # The secrets. A changed one restarts nothing: Nomad would restart replicas without
      # regard to each other. A new generation of the job replaces them one at a time.
      template {
        destination = "$${NOMAD_SECRETS_DIR}/orch.env"
        env         = true
        change_mode = "noop"
        data        = "{{ with nomadVar \"nomad/jobs/orch\" }}{{ range .Tuples }}{{ .K }}={{ .V | toJSON }}\n{{ end }}{{ end }}"
      }

      # The service reads them again when they change.
      dynamic "template" {
        for_each = local.agents_files
        content {
          destination = "${local.agents_dir}/${template.value}.pem"
          change_mode = "noop"
          data        = "{{ with nomadVar \"nomad/jobs/orch/orch\" }}{{ .${template.value} }}{{ end }}"
        }
      }

      # The token for Nomad. Nomad renews the file.
      dynamic "identity" {
        for_each = var.identity ? ["orch"] : []
        content {
          name        = identity.value
          aud         = ["nomadproject.io"]
          file        = true
          ttl         = var.identity_ttl
          change_mode = "noop"
        }
      }

      # Nomad logs in to Consul with another identity of the task.
      dynamic "consul" {
        for_each = var.identity ? ["default"] : []
        content {}
      }

      # Nomad renews the token. If it has to get another, the replica reads that from its
      # file; a restart could hit all replicas at once.
      dynamic "vault" {
        for_each = var.vault_role == "" ? [] : [var.vault_role]
        content {
          role        = vault.value
          env         = false
          change_mode = "noop"
        }
      }

      resources {
        cpu    = var.cpu_mhz
        memory = var.memory_mb
      }

      logs {
        max_files     = 5
        max_file_size = 10
      }
    }
  }
}
