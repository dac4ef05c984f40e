package registry

import (
	"errors"
	"testing"

	"github.com/septemberai/orch/engine"
)

func TestVerify(t *testing.T) {
	r := join(t, prefix(t))
	p := r.product(t, nil)
	e := r.claim(t, p, "user")
	if err := r.Verify(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	before := e.Clone()
	r.move(t, e, engine.Running)
	wantErr(t, r.Verify(t.Context(), before), ErrConflict)
	if err := r.Verify(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	gone := newEngine(p, "nobody")
	gone.Index = e.Index
	wantErr(t, r.Verify(t.Context(), gone), ErrConflict)

	session, _ := r.self.current()
	if _, err := r.client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	for _, row := range []*engine.Row{e, before} {
		err := r.Verify(t.Context(), row)
		wantErr(t, err, ErrNoSession)
		if errors.Is(err, ErrConflict) {
			t.Errorf("a lost session is reported as a conflict: %v", err)
		}
	}
	early := New(consulClient(t), r.prefix)
	early.Join(r.self.log)
	wantErr(t, early.Verify(t.Context(), e), ErrNoSession)
}

// A replica that retires hands the lead to another one, keeps its session, and never leads
// again.
func TestRetire(t *testing.T) {
	at := prefix(t)
	first := lead(t, at)
	p := first.product(t, nil)
	e := first.claim(t, p, "user")
	second := join(t, at)
	if err := second.self.Retire(t.Context()); err != nil { // it is not the leader
		t.Fatal(err)
	}
	third := join(t, at)
	if err := first.self.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the third replica leads", func() error {
		if !third.self.Leader() {
			return errors.New("it does not")
		}
		return nil
	})
	if first.self.Leader() || second.self.Leader() {
		t.Error("a retired replica leads")
	}
	wantErr(t, first.PutPooledVolume(t.Context(), &PooledVolume{EngineID: "x", NodeID: "y"}), ErrConflict)
	r := e.Clone()
	r.State = engine.Running
	if err := first.Update(t.Context(), r); err != nil {
		t.Errorf("it cannot write its own rows: %v", err)
	}
}
