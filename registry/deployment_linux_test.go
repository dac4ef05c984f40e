package registry

import (
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
)

// Volumes and engines are handed out only while the deployment's record is the one that
// this replica follows.
func TestClaimsFollowTheDeployment(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	volume := &PooledVolume{EngineID: newName(), NodeID: "node", VolumeID: "v", Path: "/v"}
	if err := r.PutPooledVolume(t.Context(), volume); err != nil {
		t.Fatal(err)
	}
	e := r.claim(t, p, "before")
	d, err := r.Deployment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next := *d
	next.State, next.Epoch = RegistryRecovering, 7
	if err := r.PutDeployment(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		pooled := newEngine(p, "after")
		pooled.EngineID = volume.EngineID
		moved := e.Clone()
		moved.EngineID = newName()
		for what, call := range map[string]func() error{
			"Claim":       func() error { return r.Claim(t.Context(), p, newEngine(p, "after"), nil) },
			"ClaimPooled": func() error { return r.Claim(t.Context(), p, pooled, volume) },
			"Reidentify":  func() error { return r.Reidentify(t.Context(), e.EngineID, moved, nil) },
		} {
			t.Run(when+what, func(t *testing.T) { wantErr(t, call(), ErrMoved) })
		}
	}
	refused("AnotherRecord")
	r.Follow(nil)
	refused("None")
	r.wantRow(t, e)
	r.wantQuota(t, p, 1)
	r.Follow(&next)
	pooled := newEngine(p, "after")
	pooled.EngineID = volume.EngineID
	if err := r.Claim(t.Context(), p, pooled, volume); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.PutDeployment(t.Context(), d), ErrConflict)
}

// A lost row is restored with its index and its place in the quota, in one transaction,
// which also removes the engine's entries elsewhere.
func TestRebuild(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	lost := newEngine(p, "lost")
	lost.State, lost.Op, lost.NodeID = engine.Stopped, nil, "node"
	if err := r.PutPooledVolume(t.Context(), &PooledVolume{EngineID: lost.EngineID, NodeID: "node"}); err != nil {
		t.Fatal(err)
	}
	if err := r.PutQuarantined(t.Context(), &Quarantined{EngineID: lost.EngineID, Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if held, err := r.Held(t.Context(), lost.EngineID); err != nil || !held {
		t.Fatalf("held %t, %v", held, err)
	}
	if err := r.Rebuild(t.Context(), p, lost, nil); err != nil {
		t.Fatal(err)
	}
	r.wantRow(t, lost)
	r.wantQuota(t, p, 1)
	if pool, _, err := r.PooledVolumes(t.Context()); err != nil || len(pool) > 0 {
		t.Errorf("pool %v, %v", pool, err)
	}
	if list, err := r.Quarantine(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("quarantine %v, %v", list, err)
	}
	wantErr(t, r.Rebuild(t.Context(), p, newEngine(p, "lost"), nil), ErrExists)
	r.wantQuota(t, p, 1)

	t.Run("Warm", func(t *testing.T) {
		warm := r.warmEngine(t)
		e := warm.Clone()
		e.ProductID, e.ProductSlug, e.UserID = p.ProductID, p.Slug, "claimed"
		if err := r.Rebuild(t.Context(), p, e, warm); err != nil {
			t.Fatal(err)
		}
		r.wantNoRow(t, warm)
		r.wantRow(t, e)
		r.wantQuota(t, p, 2)
	})
	t.Run("Correct", func(t *testing.T) {
		row := lost.Clone()
		row.State, row.Desired, row.Reason = engine.Failed, engine.Running, "recovered" // not a legal move
		if err := r.Correct(t.Context(), row, row.EngineID, nil); err != nil {
			t.Fatal(err)
		}
		r.wantRow(t, row)
		wantErr(t, r.Correct(t.Context(), lost, lost.EngineID, nil), ErrConflict)
		other := row.Clone()
		other.EngineID = newName()
		if err := r.Correct(t.Context(), other, row.EngineID, nil); err != nil {
			t.Fatal(err)
		}
		if held, err := r.Held(t.Context(), row.EngineID); err != nil || held {
			t.Errorf("the id of before is held: %t, %v", held, err)
		}
		r.wantQuota(t, p, 2)
		// It takes over an engine that another row names; that row is removed with it.
		warm := r.claim(t, p, newName())
		stale := warm.Clone()
		stale.Index--
		other.EngineID = warm.EngineID
		wantErr(t, r.Correct(t.Context(), other, other.EngineID, stale), ErrConflict)
		if err := r.Correct(t.Context(), other, other.EngineID, warm); err != nil {
			t.Fatal(err)
		}
		r.wantRow(t, other)
		r.wantNoRow(t, warm)
	})
}

// A product is restored with its slug, its keys and a count; keys that have been rotated
// since end again.
func TestRestoreProduct(t *testing.T) {
	r := lead(t, prefix(t))
	old := r.product(t, nil)
	now := *old
	now.PlatformKeyHash, now.Revision = newName(), old.Revision+1
	now.RetiredKeys = []engine.RetiredKey{{Hash: newName(), Until: time.Now().Add(time.Hour)}}
	if err := r.RestoreProduct(t.Context(), &now, old); err != nil {
		t.Fatal(err)
	}
	for hash, want := range map[string]bool{old.PlatformKeyHash: false, now.PlatformKeyHash: true, now.RetiredKeys[0].Hash: true} {
		id, err := r.ProductIDByKey(t.Context(), hash)
		if found := err == nil && id == old.ProductID; found != want {
			t.Errorf("key %s is found: %t, %v", hash, found, err)
		}
	}
	gone := &engine.Product{ProductID: newName(), Slug: "gone-" + newName()[:8], PlatformKeyHash: newName(), Revision: 3}
	if err := r.RestoreProduct(t.Context(), gone, nil); err != nil {
		t.Fatal(err)
	}
	back, err := r.Tenant(t.Context(), gone.ProductID)
	if err != nil || back.Slug != gone.Slug || back.Engines != 0 || back.Revision != 3 {
		t.Fatalf("%+v, %v", back, err)
	}
	thief := &engine.Product{ProductID: newName(), Slug: gone.Slug, PlatformKeyHash: newName()}
	wantErr(t, r.RestoreProduct(t.Context(), thief, nil), ErrExists)
}
