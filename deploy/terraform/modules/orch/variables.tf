variable "secrets" {
  type        = map(string)
  ephemeral   = true
  description = "ORCH_ADMIN_KEY, ORCH_DATABASE_URL (required for more than one replica) and the provider keys. They are in neither the plan nor the state"
}

variable "secrets_version" {
  type        = number
  description = "another value writes the secrets again, and replaces the replicas one at a time"
}

variable "agents_tls" {
  type        = string
  default     = ""
  description = "what agents_files has, if consul_addr and vault_addr of job are https addresses with an authority of their own: \"ca\", or \"mutual\" for a Consul that requires client certificates"
}

variable "agents_files" {
  type        = map(string)
  ephemeral   = true
  default     = {}
  description = "certificates and key (PEM) for TLS with Consul and Vault: ca, and for mutual also cert and key. They are in neither the plan nor the state; secrets_version writes them again, too"
}

variable "replicas" {
  type        = number
  default     = 2
  description = "number of replicas"
}

variable "orch_namespace" {
  type        = string
  default     = "default"
  description = "Nomad namespace of the job"
}

variable "namespace" {
  type        = string
  default     = "engines"
  description = "Nomad namespace of engines"
}

variable "prefix" {
  type        = string
  default     = "orch/"
  description = "prefix of orch's keys in Consul"
}

variable "mount" {
  type        = string
  default     = "orch"
  description = "path of the KV mount in Vault"
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "ORCH_ variables that are not secret, and other variables of the environment"
}

variable "job" {
  type        = map(string)
  default     = {}
  description = "other variables of nomad-jobs/orch.nomad.hcl: image or driver and binary, port, tls_dir, consul_addr, vault_addr, canary (it needs a free node more than there are replicas, or port 0), ..."
}
