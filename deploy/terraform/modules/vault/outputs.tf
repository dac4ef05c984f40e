output "mount" {
  value       = vault_mount.keys.path
  description = "path of the KV mount"
}

output "role" {
  value       = "orch"
  description = "role by which the job orch logs in"

  depends_on = [vault_generic_endpoint.role]
}

output "engines_ca_pem" {
  value       = var.engine_pki ? vault_pki_secret_backend_root_cert.engines[0].certificate : null
  description = "authority of the engines' certificates, for ORCH_ENGINE_CA_FILE and for products; null without engine_pki"
}
