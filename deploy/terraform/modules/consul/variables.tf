variable "prefix" {
  type        = string
  default     = "orch/"
  description = "prefix of orch's keys (ORCH_CONSUL_PREFIX)"

  validation {
    condition     = can(regex("^[^\"]+/$", var.prefix))
    error_message = "The prefix must end with a slash."
  }
}

variable "orch_namespace" {
  type        = string
  default     = "default"
  description = "Nomad namespace of the job orch"
}

variable "auth_method" {
  type        = string
  default     = "nomad-workloads"
  description = "name of the auth method, which is service_auth_method and task_auth_method of Nomad's agents"
}

variable "jwks_url" {
  type        = string
  description = "/.well-known/jwks.json of a Nomad agent that requires no client certificate, as Consul's servers reach it"
}

variable "jwks_ca_pem" {
  type        = string
  default     = null
  description = "authority of that agent's certificate; null: plain HTTP, or a public authority"
}
