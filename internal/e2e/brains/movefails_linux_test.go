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
	var first, second string
	for _, user := range []string{"one", "two", "three"} {
		made := harness.Provision(t, c, user, "")
		harness.Remember(t, made, made.APIKey, "the memory of "+user)
		b.fails(made.EngineID, status(isFetch, 403, "InvalidAccessKeyId"))
		e.engines = append(e.engines, made)
		if first == "" {
			first = s.NodeOf(made.EngineID)
			second = nodesBut(t, s, first)[0]
			if _, err := s.Nomad.Nodes().ToggleEligibility(second, false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Nomad.Nodes().ToggleEligibility(second, true, nil); err != nil {
		t.Fatal(err)
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
