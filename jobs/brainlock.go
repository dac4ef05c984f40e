package jobs

import (
	"strings"

	"github.com/hashicorp/nomad/api"
)

// With raw_exec a process can outlive what Nomad knows of it: when its executor is
// killed, Nomad starts the task again beside it. So an engine takes an exclusive lock on
// the directory of its brain, which it and its children hold as long as one of them
// lives; whoever comes second ends at once, before it has read or written a byte.
// (Containers need no lock for that: Nomad removes a container of the same allocation
// before it starts the next one; createContainer in its drivers/docker.)

const (
	shell = "/bin/sh"
	// lockScript gets the directory of the brain, the engine's executable and what the
	// job file says are its arguments. The shell
	// becomes the engine, with the lock. Where the node has no flock, there is none. No
	// "${" may be written here: Nomad interpolates it.
	lockScript = `if command -v flock >/dev/null 2>&1; then
  exec 9<"$0" && flock -n 9 || { echo "another process has the brain $0" >&2; exit 75; }
fi
exec "$@"`
)

// executable is what a raw_exec task runs.
func executable(task *api.Task) string {
	command, _ := task.Config["command"].(string)
	if args := argsOf(task); command == shell && len(args) >= 4 && args[1] == lockScript {
		return args[3]
	}
	return command // of a version before
}

// argsOf are the arguments in a task's config, as they were set or as Nomad gives them
// back.
func argsOf(task *api.Task) []string {
	list, _ := task.Config["args"].([]any)
	args, _ := task.Config["args"].([]string)
	for _, a := range list {
		s, _ := a.(string)
		args = append(args, s)
	}
	return args
}

// NotExecutable says whether the reason for the end of a raw_exec task is that the shell
// did not find its executable, or could not run it (POSIX: exit codes 127 and 126).
func NotExecutable(reason string) bool {
	return strings.HasSuffix(reason, "Exit Code: 127") || strings.HasSuffix(reason, "Exit Code: 126")
}
