resource "orch_product" "acme" {
  slug         = "acme"
  display_name = "ACME Inc."

  policy = {
    max_engines    = 500
    rate_limit_rpm = 6000
    engine_image   = "registry.example.com/acme/engine:7"
    allowed_images = ["registry.example.com/acme/engine:*"]
    idle_timeout_s = 900
    memory_mb      = 512
    brain_mb       = 2048
  }

  # A new value creates a new platform key. The old key stays valid for an hour.
  platform_key_rotation        = "2026-11"
  platform_key_overlap_seconds = 3600
}
