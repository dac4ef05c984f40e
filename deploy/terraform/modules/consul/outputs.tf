output "prefix" {
  value       = var.prefix
  description = "prefix of orch's keys"
}
