resource "orch_product" "acme" {
  slug                  = "acme"
  display_name          = "ACME Inc."
  platform_key_rotation = "2026-11"
}

ephemeral "orch_platform_key" "acme" {
  product_id = orch_product.acme.id
  generation = orch_product.acme.platform_key_generation
}

# Stores each new key in Vault, and runs only when there is a new one.
resource "terraform_data" "acme_key" {
  triggers_replace = orch_product.acme.platform_key_generation

  provisioner "local-exec" {
    command = "printf %s \"$${KEY:?the key was lost: change platform_key_rotation}\" | vault kv put secret/acme/orch platform_key=-"
    environment = {
      KEY = ephemeral.orch_platform_key.acme.platform_key
    }
  }
}
