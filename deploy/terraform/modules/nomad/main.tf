# What orch needs in Nomad: the namespace of engines, the rights of the job orch, and node
# pools. The files in deploy/nomad are the source.

locals {
  namespace = file("${path.module}/../../../nomad/engines.namespace.hcl")
  rules     = file("${path.module}/../../../nomad/orch.policy.hcl")
}

resource "nomad_namespace" "engines" {
  name        = var.namespace
  description = regex("(?m)^description\\s*=\\s*\"([^\"]*)\"", local.namespace)[0]

  capabilities {
    enabled_task_drivers = jsondecode(regex("enabled_task_drivers\\s*=\\s*(\\[[^\\]]*\\])", local.namespace)[0])
  }
}

# Nomad deletes no namespace with running jobs or with variables. But it deletes one with host
# volumes, which nobody could list or delete then.
resource "terraform_data" "no_volumes" {
  input      = nomad_namespace.engines.name
  depends_on = [nomad_namespace.engines]

  provisioner "local-exec" {
    when        = destroy
    environment = { NAMESPACE = self.output }
    command     = <<-EOT
      [ "$(nomad operator api "/v1/volumes?type=host&namespace=$NAMESPACE" | tr -d '[:space:]')" = "[]" ] && exit
      echo "The namespace $NAMESPACE contains host volumes, or they cannot be listed. Destroy the engines first. Ready volumes go with ORCH_VOLUME_POOL=0." >&2
      exit 1
    EOT
  }
}

# The tasks of the job orch have these rights by their workload identity, without a token.
resource "nomad_acl_policy" "orch" {
  name        = "orch-job"
  description = "orch as a Nomad job"
  rules_hcl   = replace(local.rules, "namespace \"engines\"", "namespace \"${var.namespace}\"")

  job_acl {
    namespace = var.orch_namespace
    job_id    = "orch"
  }

  # It is destroyed first: then the service cannot make a volume any more.
  depends_on = [terraform_data.no_volumes]
}

resource "nomad_node_pool" "engines" {
  for_each = var.node_pools

  name        = each.key
  description = each.value
}
