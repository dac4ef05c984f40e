package brains

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestEvacuate: all engines of a node go to another one by a call, and back when an operator
// drains that one. They keep their keys and their brains, nothing of them is left behind, and
// the node is as the operator wanted it.
func TestEvacuate(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_POOL": "0", "ORCH_ON_DRAIN": "move", "ORCH_EVACUATE_PARALLEL": "2"})
	c, admin, ctx, s := r.Product(t, nil), r.Admin(), t.Context(), harness.OpenStores(t, stack)
	harness.WatchBrains(t, stack)
	e := evacuated{t: t, c: c, s: s}
	first := e.nodes()[0]
	second := e.nodes()[1]
	if _, err := s.Nomad.Nodes().ToggleEligibility(second, false, nil); err != nil {
		t.Fatal(err)
	}
	users := []string{"runs", "also-runs", "rests"}
	for _, user := range users {
		made := harness.Provision(t, c, user, "")
		harness.Remember(t, made, made.APIKey, "the memory of "+user)
		e.engines = append(e.engines, made)
	}
	if _, err := c.Stop(ctx, "rests"); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(admin.Evacuation(ctx, first)), 404, "NOT_FOUND")
	harness.WantCode(t, harness.ErrOf(admin.CancelEvacuation(ctx, first)), 404, "NOT_FOUND")
	harness.WantCode(t, harness.ErrOf(admin.Evacuate(ctx, "no-such-node")), 404, "NOT_FOUND")

	// While no other node takes an engine, they stay and run on.
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it is told why none is moved", func() error {
		now, err := admin.Evacuation(ctx, first)
		if err == nil && (now.Left != 3 || len(now.Failed) == 0 || now.Failed[0].Code != "CAPACITY_EXHAUSTED") {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	harness.IsNow(t, c, "runs", "running", "")
	if _, err := admin.CancelEvacuation(ctx, first); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it is cancelled", func() error {
		now, err := admin.CancelEvacuation(ctx, first)
		if err == nil && now.Status != "cancelled" {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	if n, _, err := s.Nomad.Nodes().Info(first, nil); err != nil || n.SchedulingEligibility != nomad.NodeSchedulingEligible {
		t.Errorf("after the cancellation: %v", err)
	}

	if _, err := s.Nomad.Nodes().ToggleEligibility(second, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	e.arrive(admin, first, second)
	n, _, err := s.Nomad.Nodes().Info(first, nil)
	if err != nil || n.SchedulingEligibility != nomad.NodeSchedulingIneligible || n.DrainStrategy != nil {
		t.Errorf("after the evacuation: %v, %v", n.SchedulingEligibility, err)
	}

	// An operator drains the other node, which has time until its deadline.
	if _, err := s.Nomad.Nodes().ToggleEligibility(first, true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Nomad.Nodes().UpdateDrain(second, &nomad.DrainSpec{Deadline: time.Hour}, false, nil); err != nil {
		t.Fatal(err)
	}
	e.arrive(admin, second, first)
	harness.Eventually(t, "the drain has ended", func() error {
		n, _, err := s.Nomad.Nodes().Info(second, nil)
		if err == nil && (n.SchedulingEligibility != nomad.NodeSchedulingIneligible || n.DrainStrategy != nil || n.LastDrain == nil || n.LastDrain.Status != nomad.DrainStatusComplete) {
			err = fmt.Errorf("%v, %+v", n.SchedulingEligibility, n.LastDrain)
		}
		return err
	})
	asked := map[string]int{}
	rows, _ := harness.AuditLog(t, admin, "?action=evacuate")
	cancels, _ := harness.AuditLog(t, admin, "?action=evacuate_cancel")
	for _, row := range append(rows, cancels...) {
		asked[fmt.Sprintf("%s of %v by %s: %s", row.Action, row.Metadata["node_id"], row.Actor, row.Outcome)]++
	}
	if want := map[string]int{
		"evacuate of " + first + " by admin: ok": 2, "evacuate_cancel of " + first + " by admin: ok": 1, "evacuate of " + second + " by system: ok": 1,
	}; !maps.Equal(asked, want) {
		t.Errorf("audited: %v, want %v", asked, want)
	}
	for _, user := range users[:2] {
		if did := harness.Actions(t, c, user); did["move"] < 2 || did["health_failed"] > 0 || did["auto_restart_start"] > 0 {
			t.Errorf("%s: %v", user, did)
		}
	}
	if _, err := c.Start(ctx, "rests"); err != nil {
		t.Fatal(err)
	}
	e.remember("rests")
}

type evacuated struct {
	t       *testing.T
	c       *client.Client
	s       *harness.Stores
	engines []*client.Engine
}

func (e *evacuated) nodes() (ids []string) {
	e.t.Helper()
	list, _, err := e.s.Nomad.Nodes().List(nil)
	if err != nil || len(list) != 2 {
		e.t.Fatalf("%d nodes, %v", len(list), err)
	}
	return []string{list[0].ID, list[1].ID}
}

// arrive waits until the evacuation of a node is done, and checks that all engines are on the
// other one, and nothing of them is left behind.
func (e *evacuated) arrive(admin *client.Client, from, to string) {
	e.t.Helper()
	began := time.Now()
	var now *client.Evacuation
	harness.Eventually(e.t, "no engine is left on the node", func() (err error) {
		now, err = admin.Evacuation(e.t.Context(), from)
		if err == nil && now.Status != "done" {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	e.t.Logf("evacuated in %s: %+v", time.Since(began), now)
	for _, was := range e.engines {
		if at := e.s.NodeOf(was.EngineID); at != to {
			e.t.Errorf("%s is on %s", was.UserID, at)
		}
		volumes, _, err := e.s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: "engine-" + was.EngineID})
		if err != nil || len(volumes) != 1 || volumes[0].NodeID != to {
			e.t.Errorf("the volumes of %s: %+v, %v", was.UserID, volumes, err)
		}
		e.remember(was.UserID)
	}
}

// remember checks that an engine that runs has its memory, and the key that it always had.
func (e *evacuated) remember(user string) {
	e.t.Helper()
	now, err := e.c.Engine(e.t.Context(), user)
	if err != nil {
		e.t.Fatal(err)
	}
	if now.Status != "running" {
		if user != "rests" || now.Status != "stopped" {
			e.t.Errorf("%s is %s", user, now.Status)
		}
		return
	}
	for _, was := range e.engines {
		if was.UserID == user {
			err = errors.Join(err, harness.Export(e.t, now, was.APIKey).Knows("the memory of "+user))
		}
	}
	if err != nil {
		e.t.Error(err)
	}
}
