# What an engine's workload identity may do in Vault with ORCH_ENGINE_TLS=pki, in addition
# to nomad-workloads: get its certificate. The role of the PKI mount (engine.pki-role.json)
# decides which name that has.
path "pki-engines/issue/engine" {
  capabilities = ["update"]
}
