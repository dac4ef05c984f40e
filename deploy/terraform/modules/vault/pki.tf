# The authority of engines that serve TLS (ORCH_ENGINE_TLS=pki). Its key does not leave Vault.

locals {
  pki_role_texts = var.engine_pki ? {
    "pki-engines/roles/engine"              = replace(file("${local.files}/engine.pki-role.json"), "ACCESSOR", vault_jwt_auth_backend.nomad.accessor)
    "auth/${var.auth_path}/role/engine-tls" = replace(file("${local.files}/engine-tls.role.json"), "\"engines\"", jsonencode(var.namespace))
  } : {}
}

resource "vault_mount" "pki" {
  count = var.engine_pki ? 1 : 0

  path                  = "pki-engines"
  type                  = "pki"
  description           = "certificates of engines, by orch"
  max_lease_ttl_seconds = 10 * 365 * 86400
}

resource "vault_pki_secret_backend_root_cert" "engines" {
  count = var.engine_pki ? 1 : 0

  backend     = vault_mount.pki[0].path
  type        = "internal"
  common_name = "engines"
  ttl         = tostring(10 * 365 * 86400)
  key_type    = "ec"
  key_bits    = 256
}

resource "vault_policy" "engine_tls" {
  count = var.engine_pki ? 1 : 0

  name   = "engine-tls"
  policy = file("${local.files}/engine-tls.policy.hcl")
}

resource "vault_generic_endpoint" "pki_role" {
  for_each = local.pki_role_texts

  path                 = each.key
  ignore_absent_fields = true
  data_json = jsonencode({
    for field, value in jsondecode(each.value) : field => try(regex("^([0-9]+)h$", value)[0] * 3600, regex("^([0-9]+)m$", value)[0] * 60, value)
  })

  depends_on = [vault_mount.pki, vault_policy.engine_tls]
}
