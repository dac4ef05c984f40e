# Nomad of the one-machine stack: server and client in one agent. Its API listens on loopback
# only, so that engines do not reach it. provision.sh replaces ADDRESS, and stores the token
# for Consul in a file beside this one.
name                 = "orch"
data_dir             = "/var/lib/nomad"
disable_update_check = true
bind_addr            = "127.0.0.1"

advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

acl {
  enabled = true
}

# Callers need no certificate: Consul and Vault have none when they fetch the keys of workload
# identities, and neither has a browser that opens the UI.
tls {
  http                   = true
  rpc                    = true
  ca_file                = "/etc/orch/tls/ca.pem"
  cert_file              = "/etc/orch/tls/nomad.pem"
  key_file               = "/etc/orch/tls/nomad-key.pem"
  verify_server_hostname = true
  verify_https_client    = false
}

limits {
  http_max_conns_per_client = 2000
}

server {
  enabled           = true
  bootstrap_expect  = 1
  event_buffer_size = 10000 # the event stream does not report gaps

  # Engines are frozen for a shorter time while their brains are copied.
  default_scheduler_config {
    memory_oversubscription_enabled = true
  }
}

client {
  enabled           = true
  network_interface = "{{ GetAllInterfaces | include \"address\" \"ADDRESS\" | attr \"name\" }}"

  # Nomad must not query the metadata services of clouds.
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }

  # orch drains for some minutes. With the default, Nomad would kill it after 30 s.
  max_kill_timeout = "5m"

  # 0 means without a limit. Otherwise the client kills its tasks after some minutes without
  # Vault or a server.
  template {
    vault_retry {
      attempts = 0
    }
    consul_retry {
      attempts = 0
    }
    nomad_retry {
      attempts = 0
    }
  }
}

plugin "docker" {
  config {
    # Images are built on this machine, so one that was removed could not be pulled again.
    gc {
      image = false
    }
  }
}

# orch itself.
plugin "raw_exec" {
  config {
    enabled = true
  }
}

consul {
  address = "127.0.0.1:8501"
  ssl     = true
  ca_file = "/etc/orch/tls/ca.pem"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

vault {
  enabled               = true
  address               = "https://127.0.0.1:8200"
  ca_file               = "/etc/orch/tls/ca.pem"
  jwt_auth_backend_path = "jwt-nomad"
  create_from_role      = "nomad-workloads"

  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}
