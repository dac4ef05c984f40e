data "orch_status" "all" {
  all_products = true
}

check "engines" {
  assert {
    condition     = data.orch_status.all.health != "critical"
    error_message = "More than a fifth of all engines have failed."
  }
}
