package cluster

import (
	"testing"

	"github.com/hashicorp/nomad/api"
)

func TestUnproven(t *testing.T) {
	event := func(kind string, details ...string) *api.TaskEvent {
		e := &api.TaskEvent{Type: kind, Details: map[string]string{}}
		for i := 0; i < len(details); i += 2 {
			e.Details[details[i]] = details[i+1]
		}
		return e
	}
	exit := func(code, message string) *api.TaskEvent {
		return event(api.TaskTerminated, "exit_code", code, "exit_message", message, "oom_killed", "false")
	}
	fails := func(why string) *api.TaskEvent { return event(api.TaskDriverFailure, "driver_error", why) }
	received, started, restarting := event(api.TaskReceived), event(api.TaskStarted), event(api.TaskRestarting)
	killing, restartSignal := event(api.TaskKilling, "kill_timeout", "30s"), event(api.TaskRestartSignal)
	at := func(e *api.TaskEvent, s int64) *api.TaskEvent {
		late := *e
		late.Time = s * 1e9
		return &late
	}
	lost := exit("0", "unexpected EOF")
	killed := exit("137", "Docker container exited with non-zero exit code: 137")
	oom := event(api.TaskTerminated, "exit_code", "137", "exit_message", "OOM Killed", "oom_killed", "true")
	away := fails("failed to fetch docker daemon info: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?")
	for name, tc := range map[string]struct {
		want   bool
		events []*api.TaskEvent
	}{
		"NeverStarted":     {false, []*api.TaskEvent{received, killing}},
		"NothingKnown":     {false, nil},
		"Stopped":          {false, []*api.TaskEvent{received, started, killing, exit("0", "")}},
		"KilledAfterGrace": {false, []*api.TaskEvent{received, started, at(killing, 7), at(killed, 37)}},
		"Crashed":          {false, []*api.TaskEvent{received, started, exit("2", "Docker container exited with non-zero exit code: 2")}},
		"DockerKill":       {false, []*api.TaskEvent{received, started, killed, restarting}},
		"OutOfMemory":      {false, []*api.TaskEvent{received, started, oom, restarting, away}},
		"NoImage":          {false, []*api.TaskEvent{received, fails("Failed to pull `x`: Error response from daemon: pull access denied")}},
		"NoCommand":        {false, []*api.TaskEvent{received, fails("Failed to start container 1: Error response from daemon: exec: not found")}},
		"EndedThenAway":    {false, []*api.TaskEvent{received, started, exit("0", ""), restarting, away}},
		"RestartedByKey":   {false, []*api.TaskEvent{received, started, restartSignal, killed, started, exit("0", "")}},
		"LostThenReached":  {false, []*api.TaskEvent{received, started, lost, restarting, started, killing, exit("0", "")}},

		"DaemonDied":       {true, []*api.TaskEvent{received, started, lost, restarting, away}},
		"DiedWhileKilling": {true, []*api.TaskEvent{received, started, killing, lost}},
		"KilledUnwaited":   {true, []*api.TaskEvent{received, started, killing}},
		"WaitCancelled":    {true, []*api.TaskEvent{received, started, exit("-1", "Docker container exited with non-zero exit code: -1")}},
		"AnotherCode":      {true, []*api.TaskEvent{received, started, exit("1", "Docker container exited with non-zero exit code: 2")}},
		"NoCode":           {true, []*api.TaskEvent{received, started, event(api.TaskTerminated)}},
		"DaemonShutDown":   {true, []*api.TaskEvent{received, started, killed, restarting, away}},
		"KilledEarly":      {true, []*api.TaskEvent{received, started, at(killing, 7), at(killed, 22)}},
		"KilledThenAsked":  {true, []*api.TaskEvent{received, started, killed, restarting, killing}},
		"StartCut":         {true, []*api.TaskEvent{received, fails("Failed to start container 1: error during connect: EOF")}},
		"InspectCut":       {true, []*api.TaskEvent{received, fails("failed to inspect started container 1: unexpected EOF")}},
		"LostThenReattach": {true, []*api.TaskEvent{received, started, lost, restarting, started}},
		"Truncated":        {true, []*api.TaskEvent{restarting, away}},
		"TruncatedLate":    {false, []*api.TaskEvent{restarting, started, exit("0", "")}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := unproven(tc.events); got != tc.want {
				t.Errorf("unproven is %t, want %t", got, tc.want)
			}
		})
	}
}
