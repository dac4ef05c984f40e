output "engines_ca_pem" {
  value       = module.vault.engines_ca_pem
  description = "authority of the engines' certificates, with engine_pki"
}
