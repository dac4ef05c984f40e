package registry

import (
	"errors"
	"testing"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// TestReadAfterRestore: a replica that has seen a later row, or a row that is now missing,
// returns neither the older row nor "not found". Its view is stalled here, as it is for a
// moment after each restore.
func TestReadAfterRestore(t *testing.T) {
	at := prefix(t)
	r := join(t, at)
	m := r.NewMirror(hclog.NewNullLogger()) // not running: it has only this store's writes
	p := r.product(t, nil)
	changed, same, gone := r.claim(t, p, "changed"), r.claim(t, p, "same"), r.claim(t, p, "gone")
	snapshot, _, err := r.client.Snapshot().Save(&consul.QueryOptions{Token: management})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = snapshot.Close() }()
	changed.State = engine.Running
	if err := r.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	later := r.claim(t, p, "later")
	now, err := m.changesSince(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	m.listed(now)

	// A row that another replica removes is gone, and this is no rollback.
	if _, err := r.client.KV().Delete(r.engineKey(p.ProductID, gone.UserID), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Engine(t.Context(), p.ProductID, gone.UserID); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed by another: %v", err)
	}
	if why, _ := r.WentBack(); why != "" {
		t.Fatalf("before the restore: %s", why)
	}

	if err := r.client.Snapshot().Restore(&consul.WriteOptions{Token: management}, snapshot); err != nil {
		t.Fatal(err)
	}
	if e, err := r.Engine(t.Context(), p.ProductID, same.UserID); err != nil || e.Index != same.Index {
		t.Errorf("a row that is what it was: %+v, %v", e, err)
	}
	for _, e := range []*engine.Row{later, changed} {
		r.wentBack.Store(nil)
		if got, err := r.Engine(t.Context(), p.ProductID, e.UserID); !errors.Is(err, ErrWentBack) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("user %s: %+v, %v", e.UserID, got, err)
		}
		if why, _ := r.WentBack(); why == "" {
			t.Errorf("user %s: the rollback of the registry is not reported", e.UserID)
		}
	}
}
