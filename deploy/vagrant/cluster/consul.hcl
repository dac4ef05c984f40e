# Consul of each machine of the cluster: the HTTP API is on loopback only, for Nomad and orch
# beside it. cluster.sh adds the name, the address and the secrets in a file beside this one.
data_dir             = "/var/lib/consul"
client_addr          = "127.0.0.1"
log_level            = "warn"
disable_update_check = true

ports {
  https    = 8501
  http     = -1
  dns      = -1
  grpc     = -1
  grpc_tls = -1
  serf_wan = -1
}

acl {
  enabled        = true
  default_policy = "deny"
}

tls {
  defaults {
    ca_file         = "/etc/orch/tls/ca.pem"
    cert_file       = "/etc/orch/tls/consul.pem"
    key_file        = "/etc/orch/tls/consul-key.pem"
    verify_incoming = true
    verify_outgoing = true
  }

  internal_rpc {
    verify_server_hostname = true
  }

  # A browser that opens the UI has no certificate, but needs a token.
  https {
    verify_incoming = false
  }
}

ui_config {
  enabled = true
}

limits {
  http_max_conns_per_client = 2000
}
