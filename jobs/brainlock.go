package jobs

import (
	"strings"

	"github.com/hashicorp/nomad/api"
)

// With raw_exec a process can survive the loss of its executor: Nomad then starts the task
// again beside it. Therefore an engine takes an exclusive lock on its brain's directory,
// which it and its children keep until all of them have ended. A second process ends at
// once, before it reads or writes a byte. (Containers need no such lock: Nomad removes a
// container of the same allocation before it starts the next one; createContainer in its
// drivers/docker.)

const (
	shell = "/bin/sh"
	// lockScript gets the brain's directory, the engine's executable and the job file's
	// arguments. The shell takes the lock and executes the engine, which keeps it. On a
	// node without flock there is no lock. The script must not contain "${", because Nomad
	// interpolates it.
	lockScript = `if command -v flock >/dev/null 2>&1; then
  exec 9<"$0" && flock -n 9 || { echo "another process has the brain $0" >&2; exit 75; }
fi
exec "$@"`
)

// executable returns the path that a raw_exec task executes.
func executable(task *api.Task) string {
	command, _ := task.Config["command"].(string)
	if args := argsOf(task); command == shell && len(args) >= 4 && args[1] == lockScript {
		return args[3]
	}
	return command // jobs of an earlier version have no lock script
}

// argsOf returns the arguments in a task's config, in the form in which they were set or in
// which Nomad returns them.
func argsOf(task *api.Task) []string {
	list, _ := task.Config["args"].([]any)
	args, _ := task.Config["args"].([]string)
	for _, a := range list {
		s, _ := a.(string)
		args = append(args, s)
	}
	return args
}

// NotExecutable reports whether a raw_exec task ended because the shell did not find its
// executable or could not execute it (POSIX: exit codes 127 and 126).
func NotExecutable(reason string) bool {
	return strings.HasSuffix(reason, "Exit Code: 127") || strings.HasSuffix(reason, "Exit Code: 126")
}
