# What the service may do in Consul. The prefix is ORCH_CONSUL_PREFIX.
key_prefix "orch/" {
  policy = "write"
}

# One session per replica, which shows that it is alive, and one for the leader lock.
session_prefix "" {
  policy = "write"
}

# The health checks of the engines, and serfHealth of their nodes.
service_prefix "engine-" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
