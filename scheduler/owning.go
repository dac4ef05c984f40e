package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// owning is what a reconcile pass reads and reports about the owners of engines.
type owning struct{ s *Scheduler }

func (o owning) Quarantine(ctx context.Context, q *registry.Quarantined) error {
	return o.s.quarantine(ctx, q)
}

func (o owning) Release(ctx context.Context, q *registry.Quarantined) error {
	return o.s.release(ctx, q)
}

func (o owning) QuarantineTwins(ctx context.Context, row *engine.Row) error {
	return o.s.quarantineTwins(ctx, row)
}

func (o owning) Contradict(ctx context.Context, row *engine.Row, owner secrets.Owner) {
	_ = o.s.contradiction(ctx, row, owner) // the error is for callers
}

func (o owning) Agree(k *secrets.EngineKey, row *engine.Row) bool { return o.s.agree(k, row) }

func (o owning) Settled(engineID string) { o.s.settled(engineID) }

func (o owning) Backfill(ctx context.Context, row *engine.Row) error {
	return o.s.backfill(ctx, row)
}

func (o owning) ClaimAgain(ctx context.Context, row *engine.Row) error {
	return o.s.claimAgain(ctx, row)
}

func (o owning) WitnessProducts(ctx context.Context) error { return o.s.witnessProducts(ctx) }
