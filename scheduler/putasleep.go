package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// processOf returns the process in a row.
func processOf(row *engine.Row) boot.Process {
	return boot.Process{URL: row.URL, JobID: row.JobID(), AllocID: row.AllocID}
}

// idleEngines is what the sleeper does to engines.
type idleEngines struct{ s *Scheduler }

func (e idleEngines) Whole() bool { return e.s.guard.OK() }

func (e idleEngines) Fresh() bool { return e.s.Ready() == nil && e.s.mirror.Age() < staleView }

// MayChange returns an error if no engine may be put to sleep, because that could not be
// audited or carried out.
func (e idleEngines) MayChange(ctx context.Context) error {
	return e.s.checks.need(ctx, "consul", "nomad", "audit")
}

func (e idleEngines) Busy(ctx context.Context, row *engine.Row) (bool, error) {
	return e.s.detector.Busy(ctx, processOf(row))
}

func (e idleEngines) PutToSleep(ctx context.Context, row *engine.Row, idle time.Duration, frozen bool) (<-chan struct{}, error) {
	o, err := e.s.propose(ctx, row, proposal{
		kind: engine.OpSleep, action: audit.ActionSleep, actor: actorSystem, backends: []string{"nomad"},
		details: map[string]any{"idle_s": int(idle.Seconds())},
		prepare: func(row *engine.Row) error {
			if row.Desired = engine.Sleeping; frozen {
				row.Frozen = e.s.freezable(row)
			}
			return nil
		},
	})
	if err != nil || o == nil {
		return nil, err
	}
	return o.Answered, nil
}

func (e idleEngines) KeepFromSleep(ctx context.Context, row *engine.Row) error {
	return e.s.keepFromSleep(ctx, row)
}
