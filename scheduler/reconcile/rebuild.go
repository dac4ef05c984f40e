package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// rows compares every row with its witnesses.
func (x *recovery) rows(ctx context.Context, p *planner) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, row := range p.rows {
		work.Go(func() error { return x.row(ctx, p, row.Clone()) })
	}
	return work.Wait()
}

func (x *recovery) row(ctx context.Context, p *planner, row *engine.Row) error {
	w, err := x.r.WitnessesOf(ctx, p.peek(row.EngineID), row)
	if err != nil {
		return err
	}
	r := w.judgeRow(x.w.now, x.back)
	if r.act == "" {
		return nil
	}
	x.note(r.act, "engine", row, row.EngineID, r.why)
	if x.dry {
		return nil
	}
	switch r.act {
	case ActRebuild:
		return x.rebuild(ctx, r, row)
	case ActQuarantine:
		x.r.d.Owners.Contradict(ctx, row, w.owner())
		return nil
	}
	x.r.d.Log.Warn("a row was older than its engine and is corrected", "engine_id", row.EngineID, "product_id", row.ProductID, "was", string(row.State), "is", string(r.row.State), "why", r.why)
	err = x.r.d.Store.Correct(ctx, r.row, row.EngineID, nil)
	if errors.Is(err, registry.ErrConflict) {
		return fmt.Errorf("engine %s changed meanwhile: %w", row.EngineID, err)
	}
	return err
}

// lost rebuilds the rows of engines that have a user and no row, and quarantines
// what contradicts itself.
func (x *recovery) lost(ctx context.Context, p *planner) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, id := range slices.Sorted(maps.Keys(p.found)) {
		f := p.found[id]
		if f.empty() || p.byID[id] != nil || p.stranded[id] || x.w.pooled[id] || p.foreign(f) {
			continue
		}
		work.Go(func() error {
			w, err := x.r.WitnessesOf(ctx, f, nil)
			if err != nil {
				return err
			}
			r := w.judgeLost(x.w.now, x.back)
			switch r.act {
			case ActRebuild:
				return x.rebuild(ctx, r, nil)
			case ActQuarantine:
				return x.quarantine(ctx, f, w, r.why)
			}
			return nil
		})
	}
	return work.Wait()
}

// rebuild writes the row that was made from an engine's witnesses. before is the row
// that it has under another owner, or nil.
func (x *recovery) rebuild(ctx context.Context, r ruling, before *engine.Row) error {
	row := r.row
	why := ""
	t, err := x.tenant(ctx, row.ProductID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		why = "its product is not known"
	case err != nil:
		return err
	default:
		row.ProductSlug = t.Slug
		if row.Image == "" {
			if row.Image, err = x.r.d.Engines.Image(t.Product); err != nil {
				why = "nothing says which image it runs"
			}
			row.Resources, row.NodePool = x.r.d.Engines.Resources(t.Policy), t.Policy.NodePool
		}
	}
	has, err := x.r.d.Store.Engine(ctx, row.ProductID, row.UserID)
	var damaged *registry.Unreadable
	switch {
	case errors.As(err, &damaged) && damaged.Newer:
		return nil // it is there, for those who can read it
	case damaged != nil: // and is written over
		has = nil
	case err != nil && !errors.Is(err, registry.ErrNotFound):
		return err
	}
	if err == nil && has.EngineID != row.EngineID && has.Reason != engine.ReasonBrainMissing {
		// Of a row that was put back there may be nothing left: it was destroyed since,
		// or its provision went on under another id.
		other, err := x.r.WitnessesOf(ctx, x.found.peek(has.EngineID), has)
		if err != nil {
			return err
		}
		if !other.nothing() {
			why = "its user has another engine, " + has.EngineID
		}
	}
	if why != "" {
		w := &Witnesses{id: row.EngineID}
		return x.quarantineAs(ctx, w, row, []string{"key", "volume"}, why)
	}
	if before == nil { // told already
		x.note(ActRebuild, "engine", row, row.EngineID, r.why)
	}
	if x.dry {
		return nil
	}
	x.r.d.Log.Warn("an engine had no row that can be read; it is rebuilt from its witnesses", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State), "why", r.why)
	switch {
	case damaged != nil:
		row.Index = damaged.Index
		return x.r.d.Store.Correct(ctx, row, "", before)
	case err == nil:
		row.Index = has.Index
		return x.r.d.Store.Correct(ctx, row, has.EngineID, before)
	}
	return x.r.d.Store.Rebuild(ctx, t.Product, row, before)
}

// quarantine notes an engine that only an admin can decide about.
func (x *recovery) quarantine(ctx context.Context, f *Found, w *Witnesses, why string) error {
	owner := w.owner()
	row := &engine.Row{EngineID: f.id, ProductID: owner.ProductID, UserID: owner.UserID}
	if len(w.volumes) > 0 {
		row.NodeID = w.volumes[0].NodeID
	}
	return x.quarantineAs(ctx, w, row, f.Parts(), why)
}

func (x *recovery) quarantineAs(ctx context.Context, w *Witnesses, row *engine.Row, what []string, why string) error {
	if x.w.quarantined[row.EngineID] {
		return nil
	}
	x.note(ActQuarantine, "engine", row, w.id, why)
	if x.dry {
		return nil
	}
	x.r.d.Log.Error("an engine is quarantined until an admin decides (orch engine adopt, orch engine discard)", "engine_id", row.EngineID, "product_id", row.ProductID, "why", why)
	return x.r.d.Owners.Quarantine(ctx, &registry.Quarantined{
		EngineID: row.EngineID, Since: time.Now().UTC(), Why: why, What: what, ProductID: row.ProductID, UserID: row.UserID, NodeID: row.NodeID,
	})
}
