package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// labelAll labels the jobs of claimed warm engines that were not labelled yet.
func (p *warmPool) labelAll(ctx context.Context) {
	for _, row := range p.s.mirror.All() {
		if row.Unlabelled && row.Op == nil && ctx.Err() == nil {
			if err := p.s.label(ctx, row); err != nil && !overtaken(err) {
				p.s.log.Debug("cannot label a job; retrying", "engine_id", row.EngineID, "error", err)
			}
		}
	}
}

// label writes the owner into the job of an engine that was warm. It does not overwrite
// concurrent changes of the job or the row.
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

// witness writes the owner into an engine's variable, and keeps the hash in it.
func (s *Scheduler) witness(ctx context.Context, row *engine.Row) error {
	v, err := s.cluster.Variable(ctx, row.JobID())
	if err != nil {
		return err
	}
	v.Witness = s.witnessOf(row)
	return s.cluster.PutVariable(ctx, row.JobID(), v)
}
