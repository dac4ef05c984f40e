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
	x.r.d.Log.Warn("correcting a row that was older than its engine", "engine_id", row.EngineID, "product_id", row.ProductID, "was", string(row.State), "is", string(r.row.State), "why", r.why)
	err = x.r.d.Store.Correct(ctx, r.row, row.EngineID, nil)
	if errors.Is(err, registry.ErrConflict) {
		return fmt.Errorf("engine %s changed meanwhile: %w", row.EngineID, err)
	}
	return err
}

// lost rebuilds the rows of engines that have a user but no row, and quarantines engines
// whose records contradict each other.
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

// rebuild writes the row from an engine's witnesses. before is its row under another owner,
// or nil.
func (x *recovery) rebuild(ctx context.Context, r ruling, before *engine.Row) error {
	row := r.row
	why := ""
	t, err := x.tenant(ctx, row.ProductID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		why = "its product is unknown"
	case err != nil:
		return err
	default:
		row.ProductSlug = t.Slug
		if row.Image == "" {
			if row.Image, err = x.r.d.Engines.Image(t.Product); err != nil {
				why = "no record names its image"
			}
			row.Resources, row.NodePool = x.r.d.Engines.Resources(t.Policy), t.Policy.NodePool
		}
	}
	has, err := x.r.d.Store.Engine(ctx, row.ProductID, row.UserID)
	var damaged *registry.Unreadable
	switch {
	case errors.As(err, &damaged) && damaged.Newer:
		return nil // it exists, for a version that can read it
	case damaged != nil: // it is overwritten
		has = nil
	case err != nil && !errors.Is(err, registry.ErrNotFound):
		return err
	}
	if err == nil && has.EngineID != row.EngineID && has.Reason != engine.ReasonBrainMissing {
		// The engine of a restored row may no longer exist, because it was destroyed since,
		// or its provision continued under another id.
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
	if before == nil { // already recorded
		x.note(ActRebuild, "engine", row, row.EngineID, r.why)
	}
	if x.dry {
		return nil
	}
	x.r.d.Log.Warn("rebuilding the missing or unreadable row of an engine from its witnesses", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State), "why", r.why)
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

// quarantine records an engine whose owner only an admin can decide.
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
