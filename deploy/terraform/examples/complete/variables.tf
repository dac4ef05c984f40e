variable "jwks_url" {
  type        = string
  description = "/.well-known/jwks.json of a Nomad agent that requires no client certificate, as Consul's servers and Vault reach it"
}

variable "jwks_ca_file" {
  type        = string
  default     = null
  description = "file with the authority of that agent's certificate"
}

variable "engine_pki" {
  type        = bool
  default     = false
  description = "make an authority for certificates of engines"
}

variable "node_pools" {
  type        = map(string)
  default     = {}
  description = "node pools to make, with their descriptions"
}

variable "secrets" {
  type        = map(string)
  ephemeral   = true
  description = "ORCH_ADMIN_KEY, ORCH_DATABASE_URL and the provider keys, from TF_VAR_secrets"
}

variable "secrets_version" {
  type        = number
  default     = 1
  description = "another value writes the secrets again"
}

variable "agents_tls" {
  type        = string
  default     = ""
  description = "what agents_files has: \"ca\" or \"mutual\", if Consul and Vault have https addresses with an authority of their own"
}

variable "agents_files" {
  type        = map(string)
  ephemeral   = true
  default     = {}
  description = "ca, cert and key (PEM), from TF_VAR_agents_files"
}

variable "replicas" {
  type        = number
  default     = 2
  description = "number of replicas of orch, on as many nodes"
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "settings of orch that are not secret"
}

variable "job" {
  type        = map(string)
  default     = {}
  description = "variables of nomad-jobs/orch.nomad.hcl, such as image"
}
