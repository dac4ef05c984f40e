# Vault of the one-machine stack.
storage "file" {
  path = "/var/lib/vault"
}

listener "tcp" {
  address         = "0.0.0.0:8200"
  cluster_address = "127.0.0.1:8201"
  tls_disable     = true
}

api_addr      = "http://127.0.0.1:8200"
disable_mlock = true
ui            = true
log_level     = "warn"
