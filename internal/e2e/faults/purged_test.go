package faults

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// paused starts a service that pauses at a point, with an engine that knows "kept" and has a
// snapshot.
func paused(t *testing.T, prefix, point string) (p *harness.Process, e *client.Engine) {
	t.Helper()
	p = harness.StartFaulty(t, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), "pause "+point, "ORCH_RESTART_BACKOFF_BASE_S=2")
	product, err := p.RegisterProduct(t.Context(), "paused", "Paused", harness.PolicyOf(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	p.PlatformKey = product.PlatformAPIKey
	if e, err = p.Provision(t.Context(), laneUser, ""); err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	if _, err := p.Snapshot(t.Context(), laneUser, ""); err != nil {
		t.Fatal(err)
	}
	return p, e
}

// TestJobPurgedInBetween: somebody purges an engine's job while an operation has ended its
// process and is about to register the job again. The operation registers it anew.
func TestJobPurgedInBetween(t *testing.T) {
	for point, call := range map[string]func(c *client.Client) error{
		"restore/switch/before": func(c *client.Client) error { return harness.ErrOf(c.Restore(t.Context(), laneUser, "")) },
		"start/variable/before": func(c *client.Client) error { return harness.ErrOf(c.Start(t.Context(), laneUser)) },
	} {
		kind := engine.OpKind(filepath.Dir(filepath.Dir(point)))
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			p, e := paused(t, "purged-"+string(kind)+"/", point)
			if kind == engine.OpStart {
				if _, err := p.Stop(t.Context(), laneUser); err != nil {
					t.Fatal(err)
				}
			}
			answered := make(chan error, 1)
			go func() { answered <- call(p.Client) }()
			p.AwaitPause(t)
			if _, _, err := harness.OpenStores(t, harness.Shared).Nomad.Jobs().Deregister("engine-"+e.EngineID, true, nil); err != nil {
				t.Fatal(err)
			}
			p.Signal(t, syscall.SIGCONT)
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			now, err := p.Engine(t.Context(), laneUser)
			if err != nil {
				t.Fatal(err)
			}
			if err := harness.Export(t, now, now.APIKey).Knows("kept"); err != nil {
				t.Error(err)
			}
			if n := harness.Processes(harness.Shared, e.EngineID); n != 1 {
				t.Errorf("%d processes", n)
			}
			if _, err := p.Destroy(t.Context(), laneUser); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestForkGoesBack: the keys of the registry are put back to the middle of a fork, after the
// fork was handed out and has learnt something. It goes on with its brain.
func TestForkGoesBack(t *testing.T) {
	t.Parallel()
	const prefix, forked = "forked/", "forked"
	p, e := paused(t, prefix, "provision/fetch/before")
	ctx, kv := t.Context(), harness.OpenStores(t, harness.Shared).Consul.KV()
	answered := make(chan error, 1)
	go func() { answered <- harness.ErrOf(p.Fork(ctx, laneUser, forked, "")) }()
	p.AwaitPause(t)
	past, _, err := kv.List(prefix, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(t, syscall.SIGCONT)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	now, err := p.Engine(ctx, forked)
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, now, now.APIKey, "learnt since")
	for _, pair := range past {
		if _, err := kv.Put(&consul.KVPair{Key: pair.Key, Value: pair.Value, Flags: pair.Flags}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var after *client.Engine
	harness.Eventually(t, "the fork runs again", func() error {
		rows, err := harness.OpenStores(t, harness.Shared).Engines(prefix)
		for _, row := range rows {
			if row.Op != nil {
				err = fmt.Errorf("%s is at %s", row.UserID, row.Op.Step)
			}
		}
		if err != nil {
			return err
		}
		after, err = p.Engine(ctx, forked)
		if err == nil && after.Status != "running" {
			err = fmt.Errorf("%+v", after)
		}
		return err
	})
	if after.EngineID != now.EngineID {
		t.Fatalf("it is engine %s, and was %s", after.EngineID, now.EngineID)
	}
	memory := harness.Export(t, after, after.APIKey)
	if err := errors.Join(memory.Knows("kept"), memory.Knows("learnt since")); err != nil {
		t.Error(err)
	}
	if n := harness.Processes(harness.Shared, now.EngineID); n != 1 {
		t.Errorf("%d processes", n)
	}
	for user, id := range map[string]string{laneUser: e.EngineID, forked: now.EngineID} {
		if gone, err := p.Destroy(ctx, user); err != nil || gone.EngineID != id {
			t.Errorf("%s: %+v, %v", user, gone, err)
		}
	}
}
