output "namespace" {
  value       = nomad_namespace.engines.name
  description = "namespace of engines"
}
