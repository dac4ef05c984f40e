# What an engine's workload identity may do in Vault: read the provider keys.
# No engine may read an engine key, its own included: it gets only the hash.
path "orch/data/engine-env" {
  capabilities = ["read"]
}
