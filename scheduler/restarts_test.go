package scheduler

import (
	"testing"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

func TestSettle(t *testing.T) {
	b, now := engine.Backoff{Base: time.Second, Max: time.Minute}, time.Now()
	for _, c := range []struct {
		name     string
		state    registry.State
		op       registry.Op
		attempts int
	}{
		{"Failed", registry.Failed, registry.Op{Undo: string(BootTimeout)}, 2},
		{"CanaryFailed", registry.Failed, registry.Op{Undo: string(BootTimeout), Canary: true}, 1},
		{"NoRoom", registry.Failed, registry.Op{Undo: string(CapacityExhausted)}, 1},
		{"VaultDown", registry.Failed, registry.Op{Undo: string(BackendUnavailable)}, 1},
		{"Running", registry.Running, registry.Op{}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.op.Kind, c.op.Action = registry.OpStart, audit.ActionAutoRestartStart
			row := &registry.Engine{State: c.state, Desired: registry.Running, Restarts: &registry.Restarts{Attempts: 2}}
			settleRestarts(b, row, &c.op, now)
			if row.Restarts == nil || row.Restarts.Attempts != c.attempts || row.RunningSince.IsZero() == (c.state == registry.Running) {
				t.Errorf("got %+v, running since %s", row.Restarts, row.RunningSince)
			}
		})
	}
	row := &registry.Engine{State: registry.Stopped, Desired: registry.Stopped, Restarts: &registry.Restarts{Attempts: 2}}
	if settleRestarts(b, row, &registry.Op{Kind: registry.OpStart}, now); row.Restarts != nil {
		t.Error("an engine that was put back to stopped is to be restarted")
	}
}
