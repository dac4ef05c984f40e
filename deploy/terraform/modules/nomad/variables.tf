variable "namespace" {
  type        = string
  default     = "engines"
  description = "namespace of engines (ORCH_NOMAD_NAMESPACE), which contains nothing else"
}

variable "orch_namespace" {
  type        = string
  default     = "default"
  description = "namespace of the job orch, which exists"
}

variable "node_pools" {
  type        = map(string)
  default     = {}
  description = "node pools to make, by name, with their descriptions. A policy's node_pool names one; the nodes choose theirs in their configuration"
}
