# What the service may do in Nomad. Every line names the call that needs it;
# the rules were read from the endpoints of Nomad 1.11.

namespace "default" {
  capabilities = [
    "parse-job",            # POST /v1/jobs/parse
    "submit-job",           # register, deregister and purge, evaluate
    "list-jobs",            # GET /v1/jobs
    "read-job",             # job, allocations, evaluations, GET /v1/jobs/statuses; event topics Job, Allocation, Evaluation, Deployment
    "alloc-lifecycle",      # PUT /v1/client/allocation/<id>/signal: pause and wake, for products with sleep_mode = pause
    "host-volume-create",   # PUT /v1/volume/host/create
    "host-volume-register", # PUT /v1/volume/host/register: POST /nodes/{node_id}/adopt, after Nomad lost its state
    "host-volume-read",     # list and read; event topic HostVolume
    "host-volume-delete",   # DELETE /v1/volume/host/<id>/delete
  ]

  # The hash of an engine's key: nomad/jobs/engine-<engine_id>.
  variables {
    path "nomad/jobs/*" {
      capabilities = ["write", "read", "list", "destroy"]
    }
  }
}

# Registering a job that mounts a host volume asks for the volume, too.
host_volume "engine-*" {
  policy = "write"
}

host_volume "catalog" {
  policy = "read"
}

# GET /v1/nodes, GET /v1/node/<id>, the event topic Node; Nomad also asks for
# node:read where a client agent's configuration is read through a server.
node {
  policy = "read"
}

# A product may be bound to a node pool. (The event topic NodePool is not used:
# Nomad gives it to management tokens only.)
node_pool "*" {
  policy = "read"
}

# GET /v1/agent/self: the template block of a client agent, the version.
agent {
  policy = "read"
}
