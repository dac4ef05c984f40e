# The platform key of the product is read from ORCH_PLATFORM_KEY.
resource "orch_engine" "demo" {
  user_id        = "demo@example.com"
  engine_version = "registry.example.com/acme/engine:7"

  timeouts = {
    create = "5m"
  }
}
