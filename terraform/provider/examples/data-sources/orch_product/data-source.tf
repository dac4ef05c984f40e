data "orch_product" "acme" {
  slug = "acme"
}

output "engines_left" {
  value = data.orch_product.acme.policy.max_engines - data.orch_product.acme.engines
}
