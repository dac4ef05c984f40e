# What the service itself may do in Vault: keep one key per engine, keep the
# provider keys, find and destroy keys that no engine owns any more, and keep the
# witnesses of its registry.
# The paths name the KV v2 mount "orch" (ORCH_VAULT_MOUNT). Each deployment needs a
# mount of its own.

# Engine keys. "create" and "update" cover a check-and-set write (options.cas).
path "orch/data/engines/*" {
  capabilities = ["create", "update", "read"]
}

# All versions of a key at once when its engine is destroyed; the list finds
# keys without an engine.
path "orch/metadata/engines/*" {
  capabilities = ["read", "list", "delete"]
}

# One old version after a rotation.
path "orch/destroy/engines/*" {
  capabilities = ["update"]
}

# Which deployment the mount belongs to, and the witnesses of products: a registry
# (Consul) that was restored or lost is rebuilt from them.
path "orch/data/deployment" {
  capabilities = ["create", "update", "read"]
}

path "orch/metadata/deployment" {
  capabilities = ["read"]
}

path "orch/data/products/*" {
  capabilities = ["create", "update", "read"]
}

path "orch/metadata/products/*" {
  capabilities = ["read", "list"]
}

# Provider keys (LLM_API_KEY, ...) that every engine reads.
path "orch/data/engine-env" {
  capabilities = ["create", "update", "read"]
}

# Its own token: the token is made without the default policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
