# orch as a Nomad job, without a token: its rights come from the modules nomad, consul and
# vault. nomad-jobs/orch.nomad.hcl is the source.

# Only the job orch and operators can read it.
resource "nomad_variable" "secrets" {
  path             = "nomad/jobs/orch"
  namespace        = var.orch_namespace
  items_wo         = jsonencode(var.secrets)
  items_wo_version = var.secrets_version
}

# Of the job's group: what a container cannot read from the node.
resource "nomad_variable" "agents" {
  count = var.agents_tls == "" ? 0 : 1

  path             = "nomad/jobs/orch/orch"
  namespace        = var.orch_namespace
  items_wo         = jsonencode(var.agents_files)
  items_wo_version = var.secrets_version
}

# The values must be known when Terraform plans, so they are variables of this module, and no
# attributes of the others' resources.
resource "nomad_job" "orch" {
  jobspec          = file("${path.module}/../../../../nomad-jobs/orch.nomad.hcl")
  purge_on_destroy = true
  detach           = false # so that a failed update is a failed apply

  hcl2 {
    vars = merge(var.job, {
      agents_tls = var.agents_tls
      identity   = "true"
      vault_role = "orch"
      count      = tostring(var.replicas)
      namespace  = var.orch_namespace
      generation = tostring(var.secrets_version)
      settings = jsonencode(merge(var.settings, {
        ORCH_NOMAD_NAMESPACE = var.namespace
        ORCH_CONSUL_PREFIX   = var.prefix
        ORCH_VAULT_MOUNT     = var.mount
      }))
    })
  }

  # progress_deadline of the job is 10 minutes.
  timeouts {
    create = "15m"
    update = "15m"
  }

  depends_on = [nomad_variable.secrets, nomad_variable.agents]
}
