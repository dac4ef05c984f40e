resource "orch_engine" "demo" {
  user_id = "demo@example.com"
}

# orch_engine.demo.id is known only after the engine was created, so the key is not read
# before that.
ephemeral "orch_engine_key" "demo" {
  user_id   = orch_engine.demo.user_id
  engine_id = orch_engine.demo.id
}

resource "terraform_data" "greeting" {
  triggers_replace = orch_engine.demo.id

  provisioner "local-exec" {
    command = "curl -sf $URL/execute -H \"X-Engine-Key: $KEY\" -H 'Content-Type: application/json' -d '{\"input\": \"hello\"}'"
    environment = {
      URL = ephemeral.orch_engine_key.demo.url
      KEY = ephemeral.orch_engine_key.demo.api_key
    }
  }
}
