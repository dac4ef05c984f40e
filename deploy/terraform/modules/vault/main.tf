# What orch needs in Vault: a KV mount, the login of Nomad's workloads, and the rights of
# orch and of the engines. The files in deploy/vault are the source.

locals {
  files = "${path.module}/../../../vault"

  # The paths in the policies name the mount "orch".
  policies = { for name in ["orch", "nomad-workloads"] : name => replace(file("${local.files}/${name}.policy.hcl"), "\"orch/", "\"${var.mount}/") }

  role_texts = {
    orch            = replace(file("${local.files}/orch.role.json"), "\"default\"", jsonencode(var.orch_namespace))
    nomad-workloads = replace(file("${local.files}/nomad-workloads.role.json"), "\"engines\"", jsonencode(var.namespace))
  }

  # Vault returns durations in seconds.
  roles = { for name, text in local.role_texts : name => {
    for field, value in jsondecode(text) : field => try(regex("^([0-9]+)h$", value)[0] * 3600, regex("^([0-9]+)m$", value)[0] * 60, value)
  } }
}

# To destroy it is to destroy the keys of all engines.
resource "vault_mount" "keys" {
  path        = var.mount
  type        = "kv"
  options     = { version = "2" }
  description = "keys of engines, by orch"
}

resource "vault_policy" "all" {
  for_each = local.policies

  name   = each.key
  policy = each.value
}

resource "vault_jwt_auth_backend" "nomad" {
  path               = var.auth_path
  type               = "jwt"
  description        = "workload identities of Nomad"
  jwks_url           = var.jwks_url
  jwks_ca_pem        = var.jwks_ca_pem
  jwt_supported_algs = ["RS256", "EdDSA"]
  default_role       = "nomad-workloads"
}

# The provider's own resource for roles would leave out a field of the file that it does not
# know.
resource "vault_generic_endpoint" "role" {
  for_each = local.roles

  path                 = "auth/${vault_jwt_auth_backend.nomad.path}/role/${each.key}"
  data_json            = jsonencode(each.value)
  ignore_absent_fields = true

  depends_on = [vault_policy.all]
}
