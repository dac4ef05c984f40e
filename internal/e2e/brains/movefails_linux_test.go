package brains

import (
	"fmt"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestMovesFail: the store gives no snapshot back, so engines are stopped for their moves in
// vain. They run on where they were, no third one is stopped, and when the store gives
// snapshots again, a repeated call moves all at once.
func TestMovesFail(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	harness.WatchBrains(t, stack)
	b := newBucket(t)
	r := harness.StartService(t, stack, b.vars("ORCH_VOLUME_POOL=0", "ORCH_EVACUATE_PARALLEL=1"))
	c, admin, ctx, s := r.Product(t, nil), r.Admin(), t.Context(), harness.OpenStores(t, stack)
	e := evacuated{t: t, c: c, s: s}
	first, second := together(t, &e, "one", "two", "three")
	for _, engine := range e.engines {
		b.fails(engine.EngineID, status(isFetch, 403, "InvalidAccessKeyId"))
	}
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	var now *client.Evacuation
	harness.Eventually(t, "two moves have failed", func() (err error) {
		now, err = admin.Evacuation(ctx, first)
		if err == nil && (len(now.Failed) != 2 || now.Waits == "" || now.Moving > 0) {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	failed := map[string]bool{}
	for _, f := range now.Failed {
		failed[f.EngineID] = true
		if f.Code != "BACKEND_REFUSED" {
			t.Errorf("%+v", f)
		}
	}
	for _, engine := range e.engines {
		if !failed[engine.EngineID] {
			unharmed(t, c, engine, "the memory of "+engine.UserID)
			continue
		}
		settled(t, c, engine.UserID)
		harness.IsNow(t, c, engine.UserID, "running", "")
		e.remember(engine.UserID)
		if at := s.NodeOf(engine.EngineID); at != first {
			t.Errorf("%s is on %s", engine.UserID, at)
		}
	}
	for _, engine := range e.engines {
		b.fails(engine.EngineID, nil)
	}
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	e.arrive(admin, first, second)
	for _, engine := range e.engines {
		if did := harness.Actions(t, c, engine.UserID); did["move"] > 2 {
			t.Errorf("%s: %v", engine.UserID, did)
		}
	}
}

// TestUnreadableStay: engines whose brains cannot be read cannot be moved. They do not keep the
// others from it, and run on.
func TestUnreadableStay(t *testing.T) {
	t.Parallel()
	stack := ownStack(t, devstack.Config{ExtraClients: 1})
	harness.WatchBrains(t, stack)
	r := harness.StartService(t, stack, newBucket(t).vars("ORCH_VOLUME_POOL=0", "ORCH_EVACUATE_PARALLEL=1"))
	c, admin, ctx, s := r.Product(t, nil), r.Admin(), t.Context(), harness.OpenStores(t, stack)
	e := evacuated{t: t, c: c, s: s}
	first, second := together(t, &e, "one", "two", "three")
	for _, unreadable := range e.engines[:2] {
		makeUnreadable(t, s, unreadable.EngineID)
	}
	if _, err := admin.Evacuate(ctx, first); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the third engine is moved", func() error {
		now, err := admin.Evacuation(ctx, first)
		if err == nil && (now.Left != 2 || len(now.Failed) != 2) {
			err = fmt.Errorf("%+v", now)
		}
		return err
	})
	for _, engine := range e.engines {
		settled(t, c, engine.UserID)
		harness.AwaitEngine(t, c, engine.UserID, "running", "")
		e.remember(engine.UserID)
	}
	if at := s.NodeOf(e.engines[2].EngineID); at != second {
		t.Errorf("the third engine is on %s", at)
	}
}

// together provisions engines on one node of two, and returns the nodes.
func together(t *testing.T, e *evacuated, users ...string) (first, second string) {
	t.Helper()
	for _, user := range users {
		made := harness.Provision(t, e.c, user, "")
		harness.Remember(t, made, made.APIKey, "the memory of "+user)
		e.engines = append(e.engines, made)
		if first == "" {
			first = e.s.NodeOf(made.EngineID)
			second = nodesBut(t, e.s, first)[0]
			if _, err := e.s.Nomad.Nodes().ToggleEligibility(second, false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := e.s.Nomad.Nodes().ToggleEligibility(second, true, nil); err != nil {
		t.Fatal(err)
	}
	return first, second
}
