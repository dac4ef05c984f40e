package scheduler

import (
	"slices"
	"testing"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

func TestNoteUnproven(t *testing.T) {
	alloc := func(id, client string, unproven bool) cluster.Alloc {
		return cluster.Alloc{ID: id, Client: client, Unproven: unproven}
	}
	allocs := []cluster.Alloc{
		alloc("ended", "complete", false), alloc("proven", "failed", true), alloc("known", "failed", true),
		alloc("new", "complete", true), alloc("runs", "running", true),
	}
	row := func() *engine.Row {
		return &engine.Row{Unproven: []string{"forgotten", "known"}, Proven: []string{"proven"}}
	}
	s := &Scheduler{opts: Options{Job: jobs.Settings{Driver: jobs.Docker}}}
	got := row()
	if changed := s.noteUnproven(got, allocs); !changed || !slices.Equal(got.Unproven, []string{"forgotten", "known", "new"}) || !slices.Equal(got.Proven, []string{"proven"}) {
		t.Errorf("changed %t: %q, %q", changed, got.Unproven, got.Proven)
	}
	if s.noteUnproven(got, allocs) {
		t.Error("it is news again")
	}
	// The ends of processes that Nomad's executor reports count.
	s.opts.Job.Driver = jobs.RawExec
	if got = row(); s.noteUnproven(got, allocs) {
		t.Errorf("of processes without a container: %q", got.Unproven)
	}
}

func TestUnprovable(t *testing.T) {
	for name, tc := range map[string]struct {
		want    bool
		drivers map[string]bool
	}{
		"Both":       {false, map[string]bool{"docker": true, "raw_exec": true}},
		"NoScripts":  {true, map[string]bool{"docker": true}},
		"Unhealthy":  {true, map[string]bool{"docker": true, "raw_exec": false}},
		"NoDocker":   {false, map[string]bool{"docker": false}},
		"NoneOfBoth": {false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := unprovable(&cluster.Node{Drivers: tc.drivers}); got != tc.want {
				t.Errorf("got %t, want %t", got, tc.want)
			}
		})
	}
}
