# Consul of the one-machine stack. It listens on all addresses, because connections to a
# forwarded port do not arrive on the machine's loopback. Vagrant forwards the ports only
# from the host's loopback.
node_name            = "orch"
data_dir             = "/var/lib/consul"
server               = true
bootstrap_expect     = 1
bind_addr            = "127.0.0.1"
client_addr          = "0.0.0.0"
log_level            = "warn"
disable_update_check = true

ui_config {
  enabled = true
}

limits {
  http_max_conns_per_client = 2000
}
