package scheduler

import (
	"context"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

const (
	// straysEvery is the interval at which the leader looks for workers without an operation,
	// and straysKept how long one must have been without: longer than this replica's view may
	// lag behind.
	straysEvery, straysKept = 5 * time.Minute, time.Minute
)

// strayWorkers are the workers without an operation, and when each was first seen.
type strayWorkers map[string]time.Time

// sweep removes jobs and orders of workers that no operation waits for. An operation removes
// its own; what a replica has left that was paused, or a registry that was restored, is here.
func (st strayWorkers) sweep(ctx context.Context, s *Scheduler) error {
	names, err := s.cluster.Workers(ctx, jobs.WorkerPrefix)
	if err != nil {
		return err
	}
	rows, there := s.mirror.All(), map[string]bool{}
	for _, name := range names {
		if !isStray(name, s.guard.ID(), rows) {
			continue
		}
		there[name] = true
		switch since, seen := st[name]; {
		case !seen:
			st[name] = time.Now()
		case time.Since(since) > straysKept:
			s.log.Info("removing a worker of snapshots that no operation waits for", "job", name)
			if err := s.removeWorkers(ctx, name); err != nil {
				return err
			}
		}
	}
	for name := range st {
		if !there[name] {
			delete(st, name)
		}
	}
	return nil
}

// isStray reports whether a worker is of this deployment, and of no operation in its rows.
func isStray(name, deploymentID string, rows []*engine.Row) bool {
	id, _, _ := strings.Cut(strings.TrimPrefix(name, jobs.WorkerPrefix), "-")
	if !engine.MadeBy(id, deploymentID) {
		return false
	}
	for _, row := range rows {
		if row.EngineID == id && row.Op != nil {
			return false // it removes them at its end
		}
	}
	return true
}
