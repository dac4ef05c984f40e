# Nomad of each machine of the cluster. cluster.sh adds the name, the addresses and the
# secrets in a file beside this one. Its API is also on the machine's address, because orch
# asks each client for its settings; the firewall keeps engines away from it.
data_dir             = "/var/lib/nomad"
disable_update_check = true

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

# The name has the addresses of all servers, in /etc/hosts.
vault {
  enabled               = true
  address               = "https://vault.internal:8200"
  ca_file               = "/etc/orch/tls/ca.pem"
  jwt_auth_backend_path = "jwt-nomad"
  create_from_role      = "nomad-workloads"

  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}
