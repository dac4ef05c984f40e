# What the service may do in Nomad. Every line names the calls that need it. The
# namespace (ORCH_NOMAD_NAMESPACE) must contain only engines.

namespace "engines" {
  capabilities = [
    "submit-job",           # parse, register, deregister and purge, evaluate
    "list-jobs",            # GET /v1/jobs
    "read-job",             # job, allocations, evaluations, GET /v1/jobs/statuses; event topics Job, Allocation, Evaluation, Deployment
    "alloc-lifecycle",      # PUT /v1/client/allocation/<id>/signal: pause and wake, for products with sleep_mode = pause
    "read-logs",            # GET /v1/client/fs/logs/<id>: the reports of the workers that make and restore snapshots
    "host-volume-register", # PUT /v1/volume/host/register: POST /nodes/{node_id}/adopt, after Nomad lost its state; implies create, list and read
    "host-volume-delete",   # DELETE /v1/volume/host/<id>/delete
  ]

  # The hash of an engine's key: nomad/jobs/engine-<engine_id>.
  variables {
    path "nomad/jobs/engine-*" {
      capabilities = ["write", "read", "destroy"] # read implies list
    }

    # What a worker of snapshots is told to do, with its keys and pre-signed URLs.
    path "nomad/jobs/orch-brain-*" {
      capabilities = ["write", "read", "destroy"]
    }
  }
}

# The registration of a job that mounts a host volume needs this policy, too.
host_volume "engine-*" {
  policy = "write"
}

# GET /v1/nodes, GET /v1/node/<id>, the event topic Node, and GET /v1/agent/members (the
# servers' versions). PUT /v1/node/<id>/eligibility and /drain: the evacuation of a node, and
# nothing else, so "read" is enough for a service that is never to evacuate one.
node {
  policy = "write"
}

# Warnings at the start and `orch server -check`, and nothing else: GET /v1/agent/self of each
# node (its acl and template blocks).
agent {
  policy = "read"
}
