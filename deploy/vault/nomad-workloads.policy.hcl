# What an engine's workload identity may do in Vault: read the provider keys. An engine
# may not read any engine key, not even its own; it gets only the hash of its key.
path "orch/data/engine-env" {
  capabilities = ["read"]
}
