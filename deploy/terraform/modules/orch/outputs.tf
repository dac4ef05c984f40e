output "job" {
  value       = nomad_job.orch.id
  description = "name of the job. What depends on it is made when the replicas are healthy"
}
