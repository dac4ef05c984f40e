# What the service may do in Vault: store a key per engine and one per brain, the provider
# keys and the witnesses of its registry, and find and destroy keys without an engine. The paths name
# the KV v2 mount "orch" (ORCH_VAULT_MOUNT). Each deployment needs its own mount.

# Engine keys. "create" and "update" cover a check-and-set write (options.cas).
path "orch/data/engines/*" {
  capabilities = ["create", "update", "read"]
}

# "delete" removes all versions of a key when its engine is destroyed; "list" finds keys
# without an engine.
path "orch/metadata/engines/*" {
  capabilities = ["read", "list", "delete"]
}

# Destroys one old version after a rotation.
path "orch/destroy/engines/*" {
  capabilities = ["update"]
}

# The keys with which the snapshots of brains are encrypted. "delete" removes an engine's when
# it is destroyed, so that nobody can read its snapshots any more; "list" finds keys without
# an engine.
path "orch/data/brains/*" {
  capabilities = ["create", "update", "read"]
}

path "orch/metadata/brains/*" {
  capabilities = ["read", "list", "delete"]
}

# The record of the deployment that uses the mount, and the witnesses of products. A
# registry (Consul) that was restored from a backup or lost is rebuilt from them.
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

# The service renews its own token, which is created without the default policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
