package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// MaxKeepAwake is how long a product may keep an engine awake by one call.
const MaxKeepAwake = time.Hour

// KeepAwake keeps a running engine awake for d from now on, and returns until when. The
// last call counts. After that time, the engine is idle if nobody is admitted. It waits for
// a rotation in progress.
//
// ENGINE_NOT_FOUND, ENGINE_NOT_RUNNING, ENGINE_BUSY: it is being stopped or put to sleep.
func (s *Scheduler) KeepAwake(ctx context.Context, caller *Caller, d time.Duration) (time.Time, error) {
	if err := s.ops.Open(); err != nil {
		return time.Time{}, err
	}
	for range maxClaims {
		row, err := caller.engine()
		if err != nil {
			return time.Time{}, err
		}
		switch {
		case row.State != engine.Running:
			return time.Time{}, engine.Errorf(engine.EngineNotRunning, "the engine is %s; only a running engine can be kept awake", row.State)
		case row.Op != nil && row.Op.Kind == engine.OpRotateKey:
			if err := s.awaitOperation(ctx, row); err != nil {
				switch AsError(err).Code {
				case engine.RotationUnconfirmed:
					return time.Time{}, engine.BusyWith(row.Op.Kind) // the operation continues
				case engine.BackendUnavailable, engine.BackendRefused:
					return time.Time{}, err
				}
			}
		case yields(row) && row.Op.Kind != engine.OpMove: // one that calls this often would never be moved
			if err := s.yield(ctx, row); err != nil {
				return time.Time{}, err
			}
		case row.Op != nil:
			return time.Time{}, engine.BusyWith(row.Op.Kind)
		default:
			row.KeepAwakeUntil, row.SleepPending = time.Now().UTC().Add(d).Truncate(time.Millisecond), ""
			if err := s.store.Update(ctx, row); !errors.Is(err, registry.ErrConflict) {
				return row.KeepAwakeUntil, err
			}
		}
		if err := caller.refresh(ctx, s); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, engine.Errorf(engine.EngineBusy, "the engine changes faster than it can be kept awake; retry in a moment")
}
