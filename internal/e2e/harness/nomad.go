package harness

import (
	"fmt"
	"slices"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
)

// Lives returns nil if the job of this name has a living process, or has none, as wanted.
func (s *Stores) Lives(name string, want bool) error {
	allocs, _, err := s.Nomad.Jobs().Allocations(name, true, nil)
	if err != nil {
		return err
	}
	running := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "running" })
	if pending := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "pending" }); running != want || !want && pending {
		return fmt.Errorf("running is %t", running)
	}
	return nil
}

// NodeOf returns the id of the node on which an engine is to run.
func (s *Stores) NodeOf(engineID string) string {
	s.T.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return NodeOf(job)
}

// Processes returns the count of an engine's job, and the number of its living allocations.
func (s *Stores) Processes(engineID string) (count int, running int) {
	s.T.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	allocs, _, err := s.Nomad.Jobs().Allocations(*job.ID, true, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, a := range allocs {
		if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending {
			running++
		}
	}
	return *job.TaskGroups[0].Count, running
}

// TaskEvents returns Nomad's task events of an engine's processes.
func (s *Stores) TaskEvents(engineID string) string {
	s.T.Helper()
	allocs, _, err := s.Nomad.Jobs().Allocations(engine.JobID(engineID), true, nil)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, a := range allocs {
		for _, state := range a.TaskStates {
			for _, e := range state.Events {
				fmt.Fprintf(&b, "%s %s %s: %s\n", a.ID[:8], time.Unix(0, e.Time).UTC().Format("15:04:05.000"), e.Type, e.DisplayMessage)
			}
		}
	}
	return b.String()
}

// ReadyNode returns the only node that is ready.
func (s *Stores) ReadyNode() (id string) {
	s.T.Helper()
	nodes, _, err := s.Nomad.Nodes().List(nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, n := range nodes {
		if n.Status == nomad.NodeStatusReady {
			if id != "" {
				s.T.Fatalf("both %s and %s are up", id, n.ID)
			}
			id = n.ID
		}
	}
	if id == "" {
		s.T.Fatal("no node is up")
	}
	return id
}

// Described waits until Nomad's UI shows all these words for an engine's job.
func (s *Stores) Described(engineID string, what ...string) {
	s.T.Helper()
	Eventually(s.T, "the job names its owner", func() error {
		job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
		if err != nil {
			return err
		}
		for _, w := range what {
			if job.UI == nil || !strings.Contains(job.UI.Description, w) {
				return fmt.Errorf("it contains %+v, not %s", job.UI, w)
			}
		}
		return nil
	})
}
