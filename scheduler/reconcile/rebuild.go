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
	"github.com/septemberai/orch/scheduler/witness"
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
	e, err := x.r.Evidence(ctx, p.peek(row.EngineID), row)
	if err != nil {
		return err
	}
	r := e.JudgeRow(x.w.now, x.back)
	if r.Verdict == "" {
		return nil
	}
	x.note(Act(r.Verdict), "engine", row, row.EngineID, r.Why)
	if x.dry {
		return nil
	}
	switch r.Verdict {
	case witness.Rebuild:
		return x.rebuild(ctx, r, row)
	case witness.Quarantine:
		x.r.d.Owners.Contradict(ctx, row, e.Owner())
		return nil
	}
	x.r.d.Log.Warn("correcting a row that was older than its engine", "engine_id", row.EngineID, "product_id", row.ProductID, "was", string(row.State), "is", string(r.Row.State), "why", r.Why)
	err = x.r.d.Store.Correct(ctx, r.Row, row.EngineID, nil)
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
			e, err := x.r.Evidence(ctx, f, nil)
			if err != nil {
				return err
			}
			r := e.JudgeLost(x.w.now, x.back)
			switch r.Verdict {
			case witness.Rebuild:
				return x.rebuild(ctx, r, nil)
			case witness.Quarantine:
				return x.quarantine(ctx, f, e, r.Why)
			}
			return nil
		})
	}
	return work.Wait()
}

// rebuild writes the row from an engine's witnesses. before is its row under another owner,
// or nil.
func (x *recovery) rebuild(ctx context.Context, r witness.Ruling, before *engine.Row) error {
	row := r.Row
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
		other, err := x.r.Evidence(ctx, x.found.peek(has.EngineID), has)
		if err != nil {
			return err
		}
		if !other.Nothing() {
			why = "its user has another engine, " + has.EngineID
		}
	}
	if why != "" {
		return x.quarantineAs(ctx, row, []string{"key", "volume"}, why)
	}
	if before == nil { // already recorded
		x.note(ActRebuild, "engine", row, row.EngineID, r.Why)
	}
	if x.dry {
		return nil
	}
	x.r.d.Log.Warn("rebuilding the missing or unreadable row of an engine from its witnesses", "engine_id", row.EngineID, "product_id", row.ProductID, "state", string(row.State), "why", r.Why)
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
func (x *recovery) quarantine(ctx context.Context, f *Found, e *witness.Evidence, why string) error {
	owner := e.Owner()
	row := &engine.Row{EngineID: f.id, ProductID: owner.ProductID, UserID: owner.UserID, NodeID: e.NodeID()}
	return x.quarantineAs(ctx, row, f.Parts(), why)
}

func (x *recovery) quarantineAs(ctx context.Context, row *engine.Row, what []string, why string) error {
	if x.w.quarantined[row.EngineID] {
		return nil
	}
	x.note(ActQuarantine, "engine", row, row.EngineID, why)
	if x.dry {
		return nil
	}
	x.r.d.Log.Error("an engine is quarantined until an admin decides (orch engine adopt, orch engine discard)", "engine_id", row.EngineID, "product_id", row.ProductID, "why", why)
	return x.r.d.Owners.Quarantine(ctx, &registry.Quarantined{
		EngineID: row.EngineID, Since: time.Now().UTC(), Why: why, What: what, ProductID: row.ProductID, UserID: row.UserID, NodeID: row.NodeID,
	})
}
