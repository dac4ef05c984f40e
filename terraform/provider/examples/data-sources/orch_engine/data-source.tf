data "orch_engine" "demo" {
  user_id = "demo@example.com"
}

output "demo_url" {
  value = data.orch_engine.demo.url
}
