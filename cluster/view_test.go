package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/nomad/api"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/jobs"
)

func TestCountPorts(t *testing.T) {
	for list, want := range map[string]int{
		"": 0, "22": 0, "20000": 1, "20000-20009": 10, "19990-20009": 10, "20090-30000": 11, "22,20001, 20003-20004,x,5-y": 3,
	} {
		if got := countPorts(list, 20000, 20100); got != want {
			t.Errorf("%q: got %d, want %d", list, got, want)
		}
	}
}

// Nomad's reason for a failure is shown to callers, so it must not contain paths or
// addresses of a node.
func TestCleanReason(t *testing.T) {
	for in, want := range map[string]string{
		"exec: /opt/engines/bin/engine-x: no such file":                      "exec: engine-x: no such file",
		"dial tcp 10.0.3.7:4646: refused":                                    "dial tcp (address): refused",
		"dial tcp [fd00::1:2]:4646: refused":                                 "dial tcp (address): refused",
		"from fe80::1%eth0: no, ::ffff:10.0.0.1 and 2001:db8::":              "from (address): no, (address) and (address)",
		"std::string at 12:30:45, a::b::c":                                   "std::string at 12:30:45, a::b::c",
		`Get "https://u:p@registry.example.com/v2/x/y?token=t": denied`:      `Get "https://registry.example.com/v2/x/y": denied`,
		`Get "http://10.0.0.1:5000/v2/": in /var/lib/x`:                      `Get "http://(address)/v2/": in x`,
		"Cannot connect to the Docker daemon at unix:///var/run/docker.sock": "Cannot connect to the Docker daemon at unix://docker.sock",
		"two\n\tlines":            "two lines",
		"Exit Code: 1, Signal: 9": "Exit Code: 1, Signal: 9",
	} {
		if got := cleanReason(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(rapid.String(), rapid.StringMatching(`([a-zé]{1,20}[ /.:]?){0,40}`)).Draw(t, "reason")
		got := cleanReason(in)
		if len(got) > maxReason+len("...") || strings.ContainsAny(got, "\n\r") || utf8.ValidString(in) && !utf8.ValidString(got) {
			t.Fatalf("%q became %q", in, got)
		}
	})
}

func TestAllocFrom(t *testing.T) {
	event := func(kind, message string) map[string]*api.TaskState {
		return map[string]*api.TaskState{"engine": {Events: []*api.TaskEvent{{Type: kind, DisplayMessage: message}}}}
	}
	for _, c := range []struct {
		name     string
		stub     api.AllocationListStub
		failure  string
		cause    Cause
		terminal bool
	}{
		{"Running", api.AllocationListStub{ClientStatus: "running", TaskStates: event(api.TaskStarted, "Task started")}, "", "", false},
		{"NoImage", api.AllocationListStub{ClientStatus: "pending", TaskStates: event(api.TaskDriverFailure, "Failed to find image")}, "Failed to find image", CauseImage, false},
		{"NotPulled", api.AllocationListStub{ClientStatus: "pending", TaskStates: event(api.TaskDriverFailure, "Failed to pull `r/x:1`: Error response from daemon: not found")}, "Failed to pull `r/x:1`: Error response from daemon: not found", CauseImage, false},
		{"NoDaemon", api.AllocationListStub{ClientStatus: "pending", TaskStates: event(api.TaskDriverFailure, "Failed to pull `x`: Cannot connect to the Docker daemon at tcp:")}, "Failed to pull `x`: Cannot connect to the Docker daemon at tcp:", CauseDriver, false},
		{"NoMount", api.AllocationListStub{ClientStatus: "pending", TaskStates: event(api.TaskDriverFailure, "Failed to create container: invalid mount")}, "Failed to create container: invalid mount", CauseDriver, false},
		{"Memory", api.AllocationListStub{ClientStatus: "running", TaskStates: event(api.TaskTerminated, `Exit Code: 137, Exit Message: "OOM Killed"`)}, `the process was killed at its memory limit: Exit Code: 137, Exit Message: "OOM Killed"`, CauseMemory, false},
		{"Template", api.AllocationListStub{ClientStatus: "running", TaskStates: map[string]*api.TaskState{"engine": {Events: []*api.TaskEvent{
			{Type: api.TaskTerminated, DisplayMessage: "Exit Code: 3"},
			{Type: api.TaskKilling, DisplayMessage: "Template failed: no space", Details: map[string]string{"fails_task": "true"}},
		}}}}, "Template failed: no space", CauseTemplate, false},
		{"Setup", api.AllocationListStub{ClientStatus: "pending", TaskStates: event(api.TaskSetupFailure, "no volume")}, "no volume", "", false},
		{"Exited", api.AllocationListStub{ClientStatus: "running", TaskStates: event(api.TaskTerminated, "Exit Code: 3")}, "the process exited: Exit Code: 3", "", false},
		{"Failed", api.AllocationListStub{ClientStatus: "failed", ClientDescription: "Failed tasks"}, "allocation failed: Failed tasks", "", true},
		{"NoVault", api.AllocationListStub{ClientStatus: "failed", TaskStates: map[string]*api.TaskState{"engine": {Events: []*api.TaskEvent{
			{Type: api.TaskKilling, DisplayMessage: "Vault: failed to derive vault token: permission denied", Details: map[string]string{"fails_task": "true"}},
		}}}}, "Vault: failed to derive vault token: permission denied", "", true},
		{"Hook", api.AllocationListStub{ClientStatus: "failed", ClientDescription: "Failed tasks", TaskStates: map[string]*api.TaskState{"engine": {Events: []*api.TaskEvent{
			{Type: api.TaskReceived, DisplayMessage: "Task received by client", Time: 1},
			{Type: "Task hook failed", DisplayMessage: "consul_si_token: no identity", Time: 2},
		}}}}, "allocation failed: consul_si_token: no identity", "", true},
		{"StoppedOnRequest", api.AllocationListStub{ClientStatus: "complete", TaskStates: event(api.TaskKilled, "Task successfully killed")}, "", "", true},
		{"Lost", api.AllocationListStub{ClientStatus: "lost"}, "", "", true},
		{"Unknown", api.AllocationListStub{ClientStatus: "unknown"}, "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := allocFrom(&c.stub)
			if got.Failure != c.failure || got.Cause != c.cause || got.Terminal() != c.terminal {
				t.Errorf("got %q, cause %q, terminal %t", got.Failure, got.Cause, got.Terminal())
			}
		})
	}
	t.Run("Missing", func(t *testing.T) {
		waits := &api.TaskEvent{Type: "Template", DisplayMessage: "Missing: vault.write(pki-engines/issue/engine -> 5e2a)"}
		for want, events := range map[string][]*api.TaskEvent{
			"vault.write(pki-engines/issue/engine -> 5e2a)": {{Type: api.TaskReceived}, waits},
			"": {waits, {Type: api.TaskStarted}},
		} {
			if got := allocFrom(&api.AllocationListStub{TaskStates: map[string]*api.TaskState{"engine": {Events: events}}}); got.Missing != want {
				t.Errorf("got %q, want %q", got.Missing, want)
			}
		}
	})
	t.Run("Pulling", func(t *testing.T) {
		driver := func(message string) *api.TaskEvent {
			return &api.TaskEvent{Type: api.TaskDriverMessage, DisplayMessage: message}
		}
		begun, goesOn, killing := driver("Downloading image"), driver("Docker image pull progress: Pulled 1/2"), &api.TaskEvent{Type: api.TaskKilling}
		for want, events := range map[string][]*api.TaskEvent{
			"Downloading image":                      {begun, killing},
			"Docker image pull progress: Pulled 1/2": {begun, goesOn},
			"":                                       {begun, goesOn, {Type: api.TaskStarted}},
		} {
			if got := allocFrom(&api.AllocationListStub{TaskStates: map[string]*api.TaskState{"engine": {Events: events}}}); got.Pulling != want {
				t.Errorf("got %q, want %q", got.Pulling, want)
			}
		}
	})
	t.Run("Address", func(t *testing.T) {
		got := allocFrom(&api.AllocationListStub{AllocatedResources: &api.AllocatedResources{
			Shared: api.AllocatedSharedResources{Ports: []api.PortMapping{
				{Label: "other", Value: 20001, HostIP: "127.0.0.1"}, {Label: jobs.PortLabel, Value: 20002, HostIP: "::1"},
			}},
		}})
		if got.Addr != "[::1]:20002" {
			t.Errorf("got %q", got.Addr)
		}
	})
}

func TestEvalFrom(t *testing.T) {
	for _, c := range []struct {
		name   string
		metric api.AllocationMetric
		ports  bool
		volume bool
		reason string
	}{
		{"Ports", api.AllocationMetric{DimensionExhausted: map[string]int{"network: dynamic port selection failed": 1}}, true, false, "network: dynamic port selection failed exhausted"},
		{"Memory", api.AllocationMetric{DimensionExhausted: map[string]int{"memory": 1}}, false, false, "memory exhausted"},
		{"Constraint", api.AllocationMetric{ConstraintFiltered: map[string]int{"missing drivers": 2}}, false, false, "missing drivers"},
		{"Volume", api.AllocationMetric{ConstraintFiltered: map[string]int{"missing compatible host volumes": 1}}, false, true, "missing compatible host volumes"},
		{"NoNode", api.AllocationMetric{NodesEvaluated: 3}, false, false, "no eligible node among 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := evalFrom(&api.Evaluation{FailedTGAllocs: map[string]*api.AllocationMetric{"engine": &c.metric}})
			if e.Failed == nil || e.Failed.Ports != c.ports || e.Failed.Volume != c.volume || e.Failed.Reason != c.reason {
				t.Errorf("got %+v", e.Failed)
			}
		})
	}
	if e := evalFrom(&api.Evaluation{}); e.Failed != nil {
		t.Errorf("got a failure of an evaluation that placed: %+v", e.Failed)
	}
}

// The view keeps the newest version of everything, in whatever order it arrives, and counts
// what allocations have reserved of a node, with any dynamic port range.
func TestViewKeepsTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(nil, "default", Mkdir, nil)
		newest := map[string]*Alloc{}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			a := &Alloc{
				ID: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "id"), JobID: "job", NodeID: "node",
				ModifyIndex: rapid.Uint64Range(1, 30).Draw(t, "index"), Client: "running", cpuMHz: 100, memoryMB: 10, diskMB: 20, ports: []int{22, 20_001},
			}
			// The state of an allocation follows from its index, so that equal indexes mean
			// equal states.
			if a.ModifyIndex > 25 {
				a.Client = api.AllocClientStatusComplete
			}
			c.view.putAlloc(a, true)
			if old := newest[a.ID]; old == nil || a.ModifyIndex >= old.ModifyIndex {
				newest[a.ID] = a
			}
			living, of := 0, c.view.byJob["job"]
			for id, want := range newest {
				if got := c.view.allocs[id]; got == nil || got.ModifyIndex != want.ModifyIndex || !slices.Contains(of, got) {
					t.Fatalf("%s: got %+v, want index %d", id, got, want.ModifyIndex)
				}
				if !want.Terminal() {
					living++
				}
			}
			if len(of) != len(newest) {
				t.Fatalf("%d allocations of the job, want %d", len(of), len(newest))
			}
			first := rapid.SampledFrom([]int{20_000, 20_001, 20_002}).Draw(t, "first port")
			c.view.nodes["node"] = &Node{ID: "node", cpuMHz: 10_000, memoryMB: 10_000, diskMB: 5_000, minPort: first, maxPort: 20_099}
			ports := 20_100 - first
			if first <= 20_001 {
				ports -= living
			}
			if n := c.Nodes()[0]; n.Allocs != living || n.FreeCPUMHz != 10_000-100*living || n.FreeMemoryMB != 10_000-10*living || n.FreeDiskMB != 5_000-20*living || n.FreePorts != ports {
				t.Fatalf("%d living allocations leave %d MHz, %d MiB, %d MB of disk, %d ports of %d", living, n.FreeCPUMHz, n.FreeMemoryMB, n.FreeDiskMB, n.FreePorts, 20_100-first)
			}
		}
	})
}

// The lists already contain events up to their index. Applying them again would restore
// what was removed.
func TestApplyDropsWhatTheListHas(t *testing.T) {
	c := New(nil, "default", Mkdir, nil)
	payload, err := json.Marshal(map[string]any{"Allocation": api.AllocationListStub{ID: "a", JobID: "job", ClientStatus: "running", ModifyIndex: 7}})
	if err != nil {
		t.Fatal(err)
	}
	batch := func(index uint64) *eventBatch {
		return &eventBatch{Index: index, Events: []event{{Topic: api.TopicAllocation, Type: "AllocationUpdated", Index: index, Payload: payload}}}
	}
	if err := c.apply(batch(7), 7); err != nil {
		t.Fatal(err)
	}
	if len(c.view.allocs) != 0 {
		t.Error("an event that the list covers was applied")
	}
	if err := c.apply(batch(8), 7); err != nil {
		t.Fatal(err)
	}
	if len(c.view.allocs) != 1 {
		t.Error("an event after the list was not applied")
	}
}

// Only evaluations of watched jobs are kept; others are not even decoded.
func TestApplyTakesWatchedEvaluations(t *testing.T) {
	c := New(nil, "default", Mkdir, nil)
	watch := c.Watch("watched")
	defer watch.Close()
	told := func(job, payload string) error {
		return c.apply(&eventBatch{Index: 8, Events: []event{{
			Topic: api.TopicEvaluation, Type: "EvaluationUpdated", FilterKeys: []string{job, ""}, Payload: json.RawMessage(payload),
		}}}, 7)
	}
	if err := errors.Join(told("other", `not read`), told("watched", `{"Evaluation": {"ID": "e", "JobID": "watched", "Status": "complete"}}`)); err != nil {
		t.Fatal(err)
	}
	if len(c.view.evals) != 1 || len(watch.state().Evals) != 1 {
		t.Errorf("got %v", c.view.evals)
	}
	if err := told("watched", `not JSON`); err == nil {
		t.Error("an event that cannot be read is no error")
	}
}

func TestLastCrash(t *testing.T) {
	events := func(kinds ...string) (list []*api.TaskEvent) {
		for i, kind := range kinds {
			list = append(list, &api.TaskEvent{Type: kind, Time: int64(i + 1)})
		}
		return list
	}
	for _, c := range []struct {
		name   string
		events []*api.TaskEvent
		want   int64
	}{
		{"None", events(api.TaskReceived, api.TaskSetup, api.TaskStarted), 0},
		{"Crash", events(api.TaskStarted, api.TaskTerminated, api.TaskRestarting), 2},
		{"Twice", events(api.TaskStarted, api.TaskTerminated, api.TaskRestarting, api.TaskStarted, api.TaskTerminated, api.TaskNotRestarting), 5},
		{"NewKey", events(api.TaskStarted, api.TaskRestartSignal, api.TaskTerminated, api.TaskRestarting, api.TaskStarted), 0},
		{"CrashThenNewKey", events(api.TaskStarted, api.TaskTerminated, api.TaskStarted, api.TaskRestartSignal, api.TaskTerminated), 2},
		{"Stopped", events(api.TaskStarted, api.TaskKilling, api.TaskTerminated, api.TaskKilled), 0},
		{"PausedThenCrash", events(api.TaskStarted, api.TaskSignaling, api.TaskTerminated), 3},
		{"PausedManyTimesThenCrash", events(api.TaskSignaling, api.TaskSignaling, api.TaskTerminated), 3},
		{"PausedThenStopped", events(api.TaskSignaling, api.TaskKilling, api.TaskSignaling, api.TaskTerminated), 0},
		{"WhatWasBeforeIsForgotten", events(api.TaskTerminated, api.TaskRestarting, api.TaskStarted), 0},
	} {
		if got, _ := lastCrash(c.events); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}
