# Vault of the one-machine stack.
storage "raft" {
  path    = "/var/lib/vault"
  node_id = "orch"
}

listener "tcp" {
  address         = "127.0.0.1:8200"
  cluster_address = "127.0.0.1:8201"
  tls_cert_file   = "/etc/orch/tls/vault.pem"
  tls_key_file    = "/etc/orch/tls/vault-key.pem"
}

api_addr      = "https://127.0.0.1:8200"
cluster_addr  = "https://127.0.0.1:8201"
disable_mlock = true
ui            = true
log_level     = "warn"
