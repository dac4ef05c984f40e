# orch on a cluster that has nothing of it yet: locked-down agents, and an operator's access
# to them. README.md in deploy/terraform says what to set.

terraform {
  required_version = ">= 1.11"

  required_providers {
    nomad  = { source = "hashicorp/nomad" }
    consul = { source = "hashicorp/consul" }
    vault  = { source = "hashicorp/vault" }
    orch   = { source = "septemberai/orch" }
  }
}

locals {
  jwks_ca_pem = var.jwks_ca_file == null ? null : file(var.jwks_ca_file)
}

module "consul" {
  source = "../../modules/consul"

  jwks_url    = var.jwks_url
  jwks_ca_pem = local.jwks_ca_pem
}

module "vault" {
  source = "../../modules/vault"

  jwks_url    = var.jwks_url
  jwks_ca_pem = local.jwks_ca_pem
  engine_pki  = var.engine_pki
}

module "nomad" {
  source = "../../modules/nomad"

  node_pools = var.node_pools

  # Nomad refuses to delete the namespace while there are engines. So nothing else that they
  # need is destroyed before: not their keys, and not the registry.
  depends_on = [module.consul, module.vault]
}

module "orch" {
  source = "../../modules/orch"

  secrets         = var.secrets
  secrets_version = var.secrets_version
  agents_tls      = var.agents_tls
  agents_files    = var.agents_files
  replicas        = var.replicas
  settings        = var.settings
  job             = var.job

  depends_on = [module.nomad]
}

resource "orch_product" "acme" {
  slug         = "acme"
  display_name = "ACME Inc."

  depends_on = [module.orch]
}
