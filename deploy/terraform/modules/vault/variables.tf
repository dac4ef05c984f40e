variable "mount" {
  type        = string
  default     = "orch"
  description = "path of the KV version 2 secrets engine (ORCH_VAULT_MOUNT)"
}

variable "namespace" {
  type        = string
  default     = "engines"
  description = "Nomad namespace of engines"
}

variable "orch_namespace" {
  type        = string
  default     = "default"
  description = "Nomad namespace of the job orch"
}

variable "auth_path" {
  type        = string
  default     = "jwt-nomad"
  description = "path of the login, which is jwt_auth_backend_path of Nomad's agents"
}

variable "jwks_url" {
  type        = string
  description = "/.well-known/jwks.json of a Nomad agent that requires no client certificate, as Vault reaches it"
}

variable "jwks_ca_pem" {
  type        = string
  default     = null
  description = "authority of that agent's certificate; null: plain HTTP, or a public authority"
}

variable "engine_pki" {
  type        = bool
  default     = false
  description = "make an authority for certificates of engines (ORCH_ENGINE_TLS=pki)"
}
