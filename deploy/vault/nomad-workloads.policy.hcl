# What an engine's workload identity may do in Vault: read the provider keys. An engine
# may not read any engine key, not even its own; it gets only the hash of its key.
path "orch/data/engine-env" {
  capabilities = ["read"]
}

# Its own token, which Nomad looks up and renews: the role gives it no default policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
