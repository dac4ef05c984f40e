data "orch_engines" "failed" {
  status = "failed"
}

output "failed" {
  value = { for e in data.orch_engines.failed.engines : e.user_id => e.reason }
}
