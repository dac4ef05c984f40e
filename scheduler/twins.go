package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

var errTwins = engine.Errorf(engine.EngineQuarantined, "another row of the registry names this engine, too; nothing of it is removed until an admin decides who its owner is (orch engine adopt)")

// twins returns the other rows that name the engine of a row, as they are now. The view
// determines which rows to read: if an engine moved from one user to another, it may
// contain both for a moment.
func (s *Scheduler) twins(ctx context.Context, row *engine.Row) (others []*engine.Row, err error) {
	for _, seen := range s.mirror.Twins(row.EngineID) {
		if seen.ProductID == row.ProductID && seen.UserID == row.UserID {
			continue
		}
		now, err := s.store.Engine(ctx, seen.ProductID, seen.UserID)
		switch {
		case errors.Is(err, registry.ErrNotFound):
		case err != nil:
			return nil, err
		case now.EngineID == row.EngineID:
			others = append(others, now)
		}
	}
	return others, nil
}

// notTwin returns ENGINE_QUARANTINED if another row names the engine of a row.
func (s *Scheduler) notTwin(ctx context.Context, row *engine.Row) error {
	others, err := s.twins(ctx, row)
	if err == nil && len(others) > 0 {
		err = errTwins
	}
	return err
}

// mayDestroy returns nil if a row may be destroyed although another one names its engine:
// if the engine's secret names another owner than the row, only the row is deleted, and the
// owner's row stays. ENGINE_QUARANTINED.
func (s *Scheduler) mayDestroy(ctx context.Context, row *engine.Row) error {
	err := s.notTwin(ctx, row)
	if !errors.Is(err, errTwins) {
		return err
	}
	k, kerr := s.vault.NewestKey(ctx, row.EngineID)
	if kerr == nil && k.Owner != (secrets.Owner{}) && k.Owner != s.ownerOf(row) {
		return nil
	}
	return err
}

// quarantineTwins records an engine that two rows name.
func (s *Scheduler) quarantineTwins(ctx context.Context, row *engine.Row) error {
	others, err := s.twins(ctx, row)
	if err != nil || len(others) == 0 {
		return err // the next pass handles it
	}
	s.log.Error("two rows name one engine; nothing of it is removed until an admin decides (orch engine adopt)", "engine_id", row.EngineID,
		"product_id", row.ProductID, "other_product", others[0].ProductID)
	q := &registry.Quarantined{EngineID: row.EngineID, Since: time.Now().UTC(), Why: reconcile.WhyTwins, What: []string{"row", "row"}, NodeID: row.NodeID}
	if k, err := s.vault.NewestKey(ctx, row.EngineID); err == nil {
		q.ProductID, q.UserID = k.Owner.ProductID, k.Owner.UserID
	}
	return s.quarantine(ctx, q)
}

// namesakes reads the rows that name an engine, from Consul and not from the view: a row
// that was restored or edited manually is not in the view before the next pass.
func (s *Scheduler) namesakes(ctx context.Context, engineID string) (rows []*engine.Row, err error) {
	all, _, err := s.store.Engines(ctx)
	for _, row := range all {
		if row.EngineID == engineID {
			rows = append(rows, row.Clone())
		}
	}
	return rows, err
}

// strangers reads the rows of other users that name an engine of this owner.
func (s *Scheduler) strangers(ctx context.Context, owner secrets.Owner) ([]*engine.Row, error) {
	rows, err := s.namesakes(ctx, owner.EngineID)
	return slices.DeleteFunc(rows, func(row *engine.Row) bool {
		return row.ProductID == owner.ProductID && row.UserID == owner.UserID
	}), err
}

// dropStrangers deletes rows of other users that name an adopted engine, and nothing that
// they name.
func (s *Scheduler) dropStrangers(ctx context.Context, rows []*engine.Row) (err error) {
	for _, row := range rows {
		s.log.Warn("deleting a row that named another user's engine", "engine_id", row.EngineID, "product_id", row.ProductID)
		err = errors.Join(err, s.store.DropTwin(ctx, row))
	}
	return err
}
