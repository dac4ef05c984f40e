# The namespace of engines (ORCH_NOMAD_NAMESPACE): nomad namespace apply engines.namespace.hcl
#
# Nomad refuses jobs with other drivers in it, also those of the service's token. The token is
# still as good as root on the nodes: raw_exec runs as root, and Nomad lets a docker job name
# devices of its node.

name        = "engines"
description = "engines of orch"

capabilities {
  # The driver of engines (ORCH_ENGINE_DRIVER), and raw_exec for the scripts by which the
  # service proves that no process is left after a docker daemon died or Nomad lost its
  # state. Without raw_exec, engines stay failed then until an admin confirms that their
  # processes have ended (orch node adopt).
  enabled_task_drivers = ["docker", "raw_exec"]
}
