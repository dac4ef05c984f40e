package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
)

// Limits of the leader's labels. Each costs Nomad an evaluation, which must not delay boots
// while thousands of engines change their state together, as when a node fails.
const (
	labelEvery  = 2 * time.Second
	labelsAPass = 10
	// labelPause follows a label that Nomad refuses, or cannot take now.
	labelPause = 30 * time.Second
)

// labelLoop keeps what jobs show in Nomad's UI right, while this replica leads: the user of
// a claimed warm engine, and states that no operation wrote into the job, such as that of a
// process that crashed.
func (s *Scheduler) labelLoop(ctx context.Context) {
	for wait := labelEvery; pause.For(ctx, wait); {
		wait = labelEvery
		if !s.informed() {
			continue
		}
		s.warm.awaitQuiet(ctx)
		if err := s.labelSome(ctx); err != nil {
			s.log.Debug("cannot label a job; retrying", "error", err)
			wait = labelPause
		}
	}
}

// labelSome labels some of the jobs that show an outdated state or owner. The order is
// random, so that jobs that cannot be labelled do not keep others from it. It returns the
// first error that the next pass would probably meet, too.
func (s *Scheduler) labelSome(ctx context.Context) error {
	rows, left := s.mirror.All(), labelsAPass
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	for _, row := range rows {
		if row.Op != nil || row.Warm != "" || !row.Unlabelled && row.Shown == shown(row) {
			continue
		}
		if err := s.label(ctx, row); err != nil && !overtaken(err) && !errors.Is(err, cluster.ErrNotFound) {
			return fmt.Errorf("engine %s: %w", row.EngineID, err)
		}
		if left--; left == 0 {
			return nil
		}
	}
	return nil
}

// label writes an engine's owner and state into its job. It does not overwrite concurrent
// changes of the job or the row. The change is made in place, and no process is started for
// it: a job that requests a process is left as it is if Nomad knows no allocation of it any
// more, as after it has removed that of an engine that was given up. It would make one.
func (s *Scheduler) label(ctx context.Context, row *engine.Row) error {
	job, err := s.cluster.Job(ctx, row.JobID())
	if err != nil {
		return err
	}
	state, known := shown(row), true
	// Nobody knows what the job says until this is finished.
	row = row.Clone()
	if row.Shown != "" && row.Shown != state {
		row.Shown = ""
		if err := s.store.Update(ctx, row); err != nil {
			return err
		}
	}
	if row.Unlabelled {
		jobs.Label(job, jobs.Engine{EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID})
	}
	changed := jobs.Note{Shown: state}.Write(job) || row.Unlabelled
	if changed && jobs.Runs(job) {
		if known, err = s.cluster.HasAllocs(ctx, row.JobID()); err != nil {
			return err
		}
	}
	if changed && known {
		if _, err := s.cluster.Register(ctx, job, *job.JobModifyIndex); err != nil {
			return err
		}
	}
	if row.Unlabelled {
		if err := s.witness(ctx, row); err != nil {
			return err
		}
	}
	row.Unlabelled, row.Shown = false, state
	return s.store.Update(ctx, row)
}

// shown returns the state of an engine as its job shows it, with the reason.
func shown(row *engine.Row) string { return shownOf(row.State, row.Reason) }

func shownOf(state engine.State, reason string) string {
	if reason == "" {
		return string(state)
	}
	return string(state) + ", " + reason
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
