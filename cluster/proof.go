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

// notStarted matches the errors of Nomad's docker driver (StartTask in its source) from
// before a container is started. noDaemon matches those among them that report an
// unavailable daemon.
var (
	notStarted = regexp.MustCompile(`^(?i:failed to (fetch docker daemon info|create docker client|create long operations docker client|create container|create image|decode|parse|pull|find|load)|image name required)`)
	noDaemon   = regexp.MustCompile(`^failed to fetch docker daemon info|Cannot connect to the Docker daemon`)
)

// unproven reports whether the container of a task may still run although Nomad reports the
// task as ended. Nomad reports a container as ended when it can no longer wait for it, for
// example because the docker daemon died. An end counts only if the daemon reported an exit
// code.
//
// An exit by SIGKILL that Nomad did not request, or that came before the end of its grace
// period, counts only if nothing suggests that the daemon was ending: a daemon that is shut
// down together with its containerd reports this exit for containers that still run
// (measured).
func unproven(events []*api.TaskEvent) bool {
	// Nomad keeps only the last ten events.
	open := len(events) > 0 && events[0].Type != api.TaskReceived
	var asked *api.TaskEvent // Nomad's request to end, since the last start
	killed := false          // by a SIGKILL that nobody requested
	for _, e := range events {
		switch e.Type {
		case api.TaskStarted:
			open, asked, killed = true, nil, false
		case api.TaskKilling:
			asked = e
			open = open || killed // no later start will show who sent it
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

// early reports whether a task ended before the end of the grace period that Nomad gave it.
func early(asked, ended *api.TaskEvent) bool {
	grace, err := time.ParseDuration(asked.Details["kill_timeout"])
	return err == nil && time.Duration(ended.Time-asked.Time) < grace
}

// exitReported returns the exit code that the docker daemon reported for a container, if it
// reported one.
func exitReported(e *api.TaskEvent) (code int, ok bool) {
	code, err := strconv.Atoi(e.Details["exit_code"])
	if err != nil || code < 0 || code > 255 {
		return 0, false // -1: the daemon was told to stop waiting
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

// orphaned reports whether Nomad lost a raw_exec process because its executor was killed.
// The process may still run, even if the same allocation has started another one since.
func orphaned(events []*api.TaskEvent) bool {
	return slices.ContainsFunc(events, func(e *api.TaskEvent) bool {
		return e.Type == api.TaskTerminated && e.Details["exit_code"] == "-1"
	})
}
