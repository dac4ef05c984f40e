package jobs

import (
	"maps"
	"slices"

	"github.com/hashicorp/nomad/api"
)

// runtimes are the docker runtimes by kind of isolation, as policies name it. A docker
// daemon must have them under these names ("runtimes" in its daemon.json), and Nomad's
// docker plugin must allow them (allow_runtimes).
var runtimes = map[string]string{"runc": "runc", "gvisor": "runsc", "kata": "kata"}

// Runtime returns the docker runtime of a kind of isolation; "" for "", the default.
func Runtime(isolation string) string { return runtimes[isolation] }

// Runtimes returns all docker runtimes that Runtime can return.
func Runtimes() []string { return slices.Sorted(maps.Values(runtimes)) }

// RuntimesAttribute is the attribute in which a Nomad node lists the runtimes of its docker
// daemon, separated by commas (fingerprint.go in Nomad's drivers/docker).
const RuntimesAttribute = "driver.docker.runtimes"

const runtimesAttribute = "${attr." + RuntimesAttribute + "}"

// isolate sets the runtime of a task, and the constraint that its node has that runtime.
func isolate(group *api.TaskGroup, task *api.Task, isolation string) {
	if isolation == "" {
		return
	}
	name := Runtime(isolation)
	task.Config["runtime"] = name
	group.Constraints = append(group.Constraints, api.NewConstraint(runtimesAttribute, api.ConstraintSetContains, name))
}

// isolationOf returns the kind of isolation of a docker runtime; "" if it is of none.
func isolationOf(runtime string) string {
	for isolation, name := range runtimes {
		if name == runtime {
			return isolation
		}
	}
	return ""
}
