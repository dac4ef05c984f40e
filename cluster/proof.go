package cluster

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	dockerExited = "Docker container exited with non-zero exit code: "
	dockerOOM    = "OOM Killed"
	// dockerSaid is in every error that the docker daemon itself returned.
	dockerSaid = "Error response from daemon"
	// killedExit is the exit code of a process that SIGKILL ended.
	killedExit = 137
)

// notStarted matches the errors of Nomad's docker driver (StartTask in its source)
// that come before a container is started, and noDaemon those of them that say that
// the daemon is away.
var (
	notStarted = regexp.MustCompile(`^(?i:failed to (fetch docker daemon info|create docker client|create long operations docker client|create container|create image|decode|parse|pull|find|load)|image name required)`)
	noDaemon   = regexp.MustCompile(`^failed to fetch docker daemon info|Cannot connect to the Docker daemon`)
)

// unproven says whether the container of a task may run although Nomad takes the task
// for ended. Nomad reports a container as ended whenever it cannot wait for it any
// more, for one when the docker daemon dies. An end counts only when the daemon
// reported an exit code.
//
// An exit by SIGKILL that Nomad did not ask for, or before the time that it gives,
// counts only when nothing suggests that the daemon was ending: one that is shut down
// together with its containerd reports that exit for containers that run on (measured).
func unproven(events []*api.TaskEvent) bool {
	// Nomad keeps the last ten events alone.
	open := len(events) > 0 && events[0].Type != api.TaskReceived
	var asked *api.TaskEvent // to end, since it was started
	killed := false          // by SIGKILL, which nobody asked for
	for _, e := range events {
		switch e.Type {
		case api.TaskStarted:
			open, asked, killed = true, nil, false
		case api.TaskKilling:
			asked = e
			open = open || killed // by whom, no restart will tell
		case api.TaskTerminated:
			code, reported := exitReported(e)
			bySignal := code == killedExit && e.Details["oom_killed"] != "true"
			open = !reported || bySignal && asked != nil && early(asked, e)
			killed = reported && bySignal && asked == nil
		case api.TaskDriverFailure:
			what := e.Details["driver_error"]
			switch {
			case killed && noDaemon.MatchString(what):
				open = true
			case !notStarted.MatchString(what) && !strings.Contains(what, dockerSaid):
				open = true
			}
		}
	}
	return open
}

// early says whether a task ended before the time was over that Nomad gave it.
func early(asked, ended *api.TaskEvent) bool {
	grace, err := time.ParseDuration(asked.Details["kill_timeout"])
	return err == nil && time.Duration(ended.Time-asked.Time) < grace
}

// exitReported is the exit code that the docker daemon reported for a container, if it
// reported one.
func exitReported(e *api.TaskEvent) (code int, ok bool) {
	code, err := strconv.Atoi(e.Details["exit_code"])
	if err != nil || code < 0 || code > 255 {
		return 0, false // -1: the daemon was asked to stop waiting
	}
	message := e.Details["exit_message"]
	switch {
	case code == 0:
		return code, message == ""
	case message == dockerOOM, message == dockerExited+strconv.Itoa(code):
		return code, true
	}
	return 0, false
}

// orphaned says whether Nomad could not wait for the end of a raw_exec process any more:
// its executor was killed, and the process may live. A process that was started in the
// same allocation since says nothing about that one.
func orphaned(events []*api.TaskEvent) bool {
	return slices.ContainsFunc(events, func(e *api.TaskEvent) bool {
		return e.Type == api.TaskTerminated && e.Details["exit_code"] == "-1"
	})
}
