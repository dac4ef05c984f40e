package registry

import (
	"fmt"
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
)

// warmEngine creates a warm engine's row.
func (r *replica) warmEngine(t *testing.T) *engine.Row {
	t.Helper()
	e := newEngine(&engine.Product{ProductID: engine.WarmProduct, Slug: engine.WarmProduct}, newName())
	if err := r.CreateWarm(t.Context(), e, nil); err != nil {
		t.Fatal(err)
	}
	e.URL, e.Op = "http://engine", nil
	r.move(t, e, engine.Running)
	return e
}

// claimOf returns the row that a user would get.
func claimOf(warm *engine.Row, p *engine.Product, user string) *engine.Row {
	e := warm.Clone()
	e.ProductID, e.ProductSlug, e.UserID = p.ProductID, p.Slug, user
	e.State, e.Op = engine.Provisioning, &engine.Operation{ID: newName(), Kind: engine.OpProvision}
	return e
}

func TestClaimWarm(t *testing.T) {
	t.Run("OnlyOneGetsIt", func(t *testing.T) {
		r := lead(t, prefix(t))
		p, warm := r.product(t, nil), r.warmEngine(t)
		engines := make([]*engine.Row, 10)
		wantOutcomes(t, outcomes(len(engines), func(i int) error {
			engines[i] = claimOf(warm, p, fmt.Sprint("user-", i))
			return r.ClaimWarm(t.Context(), p, engines[i], warm)
		}), map[string]int{"OK": 1, ErrConflict.Error(): len(engines) - 1})
		r.wantQuota(t, p, 1)
		r.wantNoRow(t, warm)
		rows, _, err := r.Engines(t.Context())
		if err != nil || len(rows) != 1 || rows[0].EngineID != warm.EngineID || rows[0].State != engine.Provisioning || rows[0].Op == nil {
			t.Fatalf("rows %+v, %v", rows, err)
		}
		e := rows[0]
		e.Op = &engine.Operation{ID: newName(), Kind: engine.OpDestroy}
		r.move(t, e, engine.Destroying)
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		r.wantQuota(t, p, 0)
	})
	t.Run("ErrQuota", func(t *testing.T) {
		r := lead(t, prefix(t))
		none := 0
		p, warm := r.product(t, &none), r.warmEngine(t)
		wantErr(t, r.ClaimWarm(t.Context(), p, claimOf(warm, p, "u"), warm), ErrQuota)
		r.wantRow(t, warm)
	})
	t.Run("ErrExists", func(t *testing.T) {
		r := lead(t, prefix(t))
		p, warm := r.product(t, nil), r.warmEngine(t)
		r.claim(t, p, "u")
		wantErr(t, r.ClaimWarm(t.Context(), p, claimOf(warm, p, "u"), warm), ErrExists)
		r.wantRow(t, warm)
		r.wantQuota(t, p, 1)
	})
	t.Run("ErrBusy", func(t *testing.T) {
		r := lead(t, prefix(t))
		p, warm := r.product(t, nil), r.warmEngine(t)
		stale := warm.Clone()
		warm.Op = &engine.Operation{ID: newName(), Kind: engine.OpDestroy}
		r.move(t, warm, engine.Destroying)
		wantErr(t, r.ClaimWarm(t.Context(), p, claimOf(stale, p, "u"), stale), ErrConflict)
		r.wantQuota(t, p, 0)
	})
	t.Run("Answered", func(t *testing.T) {
		r := lead(t, prefix(t))
		p, warm := r.product(t, nil), r.warmEngine(t)
		e := claimOf(warm, p, "u")
		e.Idempotency = &engine.IdempotencyRef{Key: "k", Body: "b", CreatedAt: time.Now().UTC()}
		if err := r.ClaimWarm(t.Context(), p, e, warm); err != nil {
			t.Fatal(err)
		}
		record, err := r.Idempotency(t.Context(), p.ProductID, "k")
		if err != nil || record.EngineID != e.EngineID || record.URL != "" {
			t.Fatalf("record %+v, %v", record, err)
		}
		e.Op = nil
		r.move(t, e, engine.Running)
		if record, err = r.Idempotency(t.Context(), p.ProductID, "k"); err != nil || record.EngineID != e.EngineID || record.URL != e.URL {
			t.Fatalf("record %+v, %v", record, err)
		}
		if e.Idempotency != nil {
			t.Error("the row still has its record")
		}
		r.wantRow(t, e)
	})
	t.Run("RemovedUnclaimed", func(t *testing.T) {
		r := lead(t, prefix(t))
		warm := r.warmEngine(t)
		warm.Op = &engine.Operation{ID: newName(), Kind: engine.OpDestroy}
		r.move(t, warm, engine.Destroying)
		if err := r.Remove(t.Context(), warm, false); err != nil {
			t.Fatal(err)
		}
		r.wantNoRow(t, warm)
	})
}
