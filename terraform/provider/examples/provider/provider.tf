terraform {
  required_version = ">= 1.11"
  required_providers {
    orch = {
      source = "septemberai/orch"
    }
  }
}

# Keys are read from the environment: ORCH_ADMIN_KEY and ORCH_PLATFORM_KEY. An ephemeral
# variable keeps them out of plans, too.
variable "orch_admin_key" {
  type      = string
  ephemeral = true
  default   = null
}

provider "orch" {
  url       = "https://orch.example.com"
  ca_cert   = "/etc/orch/ca.pem"
  admin_key = var.orch_admin_key
}
