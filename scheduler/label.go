package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// labelAll labels the jobs of engines that were warm when that was left undone.
func (p *warmPool) labelAll(ctx context.Context) {
	for _, row := range p.s.mirror.All() {
		if row.Unlabelled && row.Op == nil && ctx.Err() == nil {
			if err := p.s.label(ctx, row); err != nil && !overtaken(err) {
				p.s.log.Debug("cannot label a job; trying again", "engine_id", row.EngineID, "error", err)
			}
		}
	}
}

// label says in the job of an engine that was warm whose it is now. Where
// somebody else changes the job or the row meanwhile, that stands.
func (s *Scheduler) label(ctx context.Context, row *engine.Row) error {
	job, err := s.cluster.Job(ctx, row.JobID())
	if err != nil {
		return err
	}
	jobs.Label(job, jobs.Engine{EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID})
	if _, err := s.cluster.Register(ctx, job, *job.JobModifyIndex); err != nil {
		return err
	}
	if err := s.witness(ctx, row); err != nil {
		return err
	}
	row = row.Clone()
	row.Unlabelled = false
	return s.store.Update(ctx, row)
}

// witness says in an engine's variable whose it is, beside the hash that is there.
func (s *Scheduler) witness(ctx context.Context, row *engine.Row) error {
	v, err := s.cluster.Variable(ctx, row.JobID())
	if err != nil {
		return err
	}
	v.Witness = s.witnessOf(row)
	return s.cluster.PutVariable(ctx, row.JobID(), v)
}
