package registry

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
)

func TestOrphans(t *testing.T) {
	at := prefix(t)
	leader := lead(t, at)
	follower := join(t, at)
	seen := time.Now().UTC().Truncate(time.Millisecond)
	o := &Orphan{EngineID: newName(), FirstSeen: seen}
	wantErr(t, follower.PutOrphan(t.Context(), o), ErrConflict)
	if err := leader.PutOrphan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantErr(t, leader.PutOrphan(t.Context(), &Orphan{EngineID: o.EngineID}), ErrConflict)
	stale := *o
	o.Removing = seen
	if err := leader.PutOrphan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	got, err := follower.Orphans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*Orphan{o}, got); diff != "" {
		t.Fatal(diff)
	}
	wantErr(t, leader.DeleteOrphan(t.Context(), &stale), ErrConflict)
	wantErr(t, follower.DeleteOrphan(t.Context(), o), ErrConflict)
	if err := leader.DeleteOrphan(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, err := leader.Orphans(t.Context()); err != nil || len(got) > 0 {
		t.Fatalf("%v, %v", got, err)
	}
}

// An engine_id is held from the pool until its volume is deleted or forgotten, and no
// longer.
func TestHeld(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	id := newName()
	held := func(want bool) {
		t.Helper()
		if got, err := r.Held(t.Context(), id); err != nil || got != want {
			t.Fatalf("held is %t, %v, want %t", got, err, want)
		}
	}
	held(false)
	v := &PooledVolume{EngineID: id, NodeID: "node-1", VolumeID: "vol-1", Owner: "agent"}
	if err := r.PutPooledVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	held(true)
	e := newEngine(p, "u")
	e.EngineID, e.NodeID, e.VolumeID = id, v.NodeID, v.VolumeID
	if err := r.Claim(t.Context(), p, e, v); err != nil {
		t.Fatal(err)
	}
	held(true)
	r.move(t, e, engine.Destroying)
	if err := r.Remove(t.Context(), e, true); err != nil {
		t.Fatal(err)
	}
	held(true)
	unreachable, _, err := r.UnreachableVolumes(t.Context())
	if err != nil || len(unreachable) != 1 {
		t.Fatalf("%v, %v", unreachable, err)
	}
	if err := r.ForgetVolume(t.Context(), unreachable[0]); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.ForgetVolume(t.Context(), unreachable[0]), ErrNotFound)
	held(false)
	// Another id with this one as its prefix does not hold it.
	if err := r.PutPooledVolume(t.Context(), &PooledVolume{EngineID: id + "x", NodeID: "node-1"}); err != nil {
		t.Fatal(err)
	}
	e = newEngine(p, "v")
	e.EngineID = id + "y"
	if err := r.Claim(t.Context(), p, e, nil); err != nil {
		t.Fatal(err)
	}
	held(false)
}

func TestCorrectQuota(t *testing.T) {
	at := prefix(t)
	r := lead(t, at)
	follower := join(t, at)
	p := r.product(t, nil)
	r.claim(t, p, "u")
	r.put(t, "quota/"+p.ProductID, []byte("5"))
	quotas, err := r.Quotas(t.Context())
	if err != nil || quotas[p.ProductID].Count != 5 {
		t.Fatalf("%v, %v", quotas, err)
	}
	q := quotas[p.ProductID]
	wantErr(t, follower.CorrectQuota(t.Context(), p.ProductID, q, 1), ErrConflict)
	r.claim(t, p, "v")
	wantErr(t, r.CorrectQuota(t.Context(), p.ProductID, q, 1), ErrConflict)
	r.wantQuota(t, p, 6)
	if quotas, err = r.Quotas(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.CorrectQuota(t.Context(), p.ProductID, quotas[p.ProductID], 2); err != nil {
		t.Fatal(err)
	}
	r.wantQuota(t, p, 2)
}

func TestReconcileRequests(t *testing.T) {
	r := join(t, prefix(t))
	if index, err := r.ReconcileRequested(t.Context(), 0); err != nil || index != 0 {
		t.Fatalf("never requested, but the index is %d, %v", index, err)
	}
	var before uint64
	for range 3 {
		if err := r.RequestReconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		index, err := r.ReconcileRequested(t.Context(), before)
		if err != nil || index <= before {
			t.Fatalf("requested, but the index went from %d to %d, %v", before, index, err)
		}
		before = index
	}
}

func TestRole(t *testing.T) {
	at := prefix(t)
	leader := lead(t, at)
	if got := leader.self.Role(); got != "leader" {
		t.Errorf("the leader is %s", got)
	}
	if got := join(t, at).self.Role(); got != "follower" {
		t.Errorf("the next is %s", got)
	}
	if got := New(consulClient(t), at).Join(leader.self.log).Role(); got != "none" {
		t.Errorf("one without a session is %s", got)
	}
}
