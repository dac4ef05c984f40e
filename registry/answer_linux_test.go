package registry

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/septemberai/orch/engine"
)

// Shared reads return the same with and without RawAnswers, and a caller that changes its
// row changes no other caller's row.
func TestLookupByEitherClient(t *testing.T) {
	consulClient(t)
	r := join(t, prefix(t))
	p := r.product(t, nil)
	e := r.claim(t, p, "user<&>")
	plain := New(agent.plain, r.prefix)
	for name, s := range map[string]*Store{"RawAnswers": r.Store, "plain": plain} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				product, row, err := s.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, e.UserID)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(p, product, rows, cmpopts.IgnoreFields(engine.Product{}, "Index")); diff != "" {
					t.Error(diff)
				}
				if stored := keptOf(row.Stored).state; row.Index != e.Index || stored != e.State {
					t.Errorf("index %d, stored %q; want %d, %q", row.Index, stored, e.Index, e.State)
				}
				if diff := cmp.Diff(e, row, cmpopts.IgnoreFields(engine.Row{}, "Stored")); diff != "" {
					t.Error(diff)
				}
				row.State, row.KeyVersion, row.Op.Step = engine.Failed, 99, "changed"
			}
			_, row, err := s.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, "nobody")
			if err != nil || row != nil {
				t.Errorf("a user without an engine: %+v, %v", row, err)
			}
			_, _, err = s.Lookup(t.Context(), "no such hash", p.ProductID, e.UserID)
			wantErr(t, err, ErrNotFound)
		})
	}
}
