package scheduler

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// waits reports whether an engine's last move failed a short while ago.
func (v *evacuations) waits(e *registry.Evacuation, engineID string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	f, tried := v.failed[engineID]
	if !tried {
		f = e.Failures[engineID]
	}
	if f.Attempts == 0 {
		return false
	}
	v.failed[engineID] = f
	wait := min(firstMoveRetry<<min(f.Attempts-1, 10), lastMoveRetry)
	return engine.StillWaits(f.At.Add(wait), time.Now(), lastMoveRetry)
}

// result notes how a move ended.
func (v *evacuations) result(row *engine.Row, err error) {
	if err != nil && (overtaken(err) || errors.Is(err, registry.ErrConflict)) {
		return // somebody uses it; it is looked at again in a moment
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.failed[row.EngineID] = registry.FailedMove{}
		return
	}
	said := AsError(err)
	v.s.log.Warn("an engine cannot be moved to another node; retrying", "engine_id", row.EngineID, "node_id", row.NodeID, "error", err)
	v.failed[row.EngineID] = registry.FailedMove{Code: string(said.Code), Message: said.Message, At: time.Now().UTC().Truncate(time.Second), Attempts: v.failed[row.EngineID].Attempts + 1}
}

// note writes what has failed into the record, and what the evacuation waits for.
func (v *evacuations) note(ctx context.Context, e *registry.Evacuation, on []*engine.Row, waits string) error {
	failures := map[string]registry.FailedMove{}
	v.mu.Lock()
	for _, row := range on {
		f, tried := v.failed[row.EngineID]
		if !tried {
			f = e.Failures[row.EngineID]
		}
		if f.Attempts > 0 {
			failures[row.EngineID] = f
		}
	}
	v.mu.Unlock()
	if waits == e.Waits && maps.Equal(failures, e.Failures) {
		return nil
	}
	e.Failures, e.Waits = failures, waits
	return v.s.store.PutEvacuation(ctx, e)
}
