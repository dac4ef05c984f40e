# What orch needs in Consul: the login of Nomad's workloads, and the rights of the job orch.
# The files in deploy/consul are the source.

locals {
  rules = file("${path.module}/../../../consul/orch.policy.hcl")
  rule  = jsondecode(file("${path.module}/../../../consul/orch.binding-rule.json"))
}

# The service writes its registry of engines below the prefix. It is destroyed last, when
# nothing has the right to write there any more, and only after the namespace of engines
# (see examples/complete): then no engine needs it.
resource "terraform_data" "registry" {
  input = var.prefix

  provisioner "local-exec" {
    when        = destroy
    environment = { PREFIX = self.output }
    command     = "consul kv delete -recurse \"$PREFIX\""
  }
}

# No max_token_ttl: Nomad does not renew the tokens of tasks.
resource "consul_acl_auth_method" "nomad" {
  name        = var.auth_method
  type        = "jwt"
  description = "workload identities of Nomad"

  config_json = jsonencode(merge(
    {
      JWKSURL          = var.jwks_url
      JWTSupportedAlgs = ["RS256"]
      BoundAudiences   = ["consul.io"]
      ClaimMappings    = { for claim in ["nomad_namespace", "nomad_job_id", "nomad_task", "nomad_service"] : claim => claim }
    },
    var.jwks_ca_pem == null ? {} : { JWKSCACert = var.jwks_ca_pem },
  ))

  depends_on = [terraform_data.registry]
}

# Nomad registers each service of a job with the identity of that service.
resource "consul_acl_binding_rule" "services" {
  auth_method = consul_acl_auth_method.nomad.name
  description = "services of Nomad's jobs"
  bind_type   = "service"
  bind_name   = "$${value.nomad_service}"
  selector    = "\"nomad_service\" in value"
}

resource "consul_acl_policy" "orch" {
  name        = local.rule.BindName
  description = "orch"
  rules       = replace(local.rules, "\"orch/\"", "\"${var.prefix}\"")

  depends_on = [terraform_data.registry]
}

resource "consul_acl_binding_rule" "orch" {
  auth_method = consul_acl_auth_method.nomad.name
  description = local.rule.Description
  bind_type   = local.rule.BindType
  bind_name   = consul_acl_policy.orch.name
  selector    = replace(local.rule.Selector, "\"default\"", "\"${var.orch_namespace}\"")
}
