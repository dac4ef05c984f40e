package scheduler

import (
	"testing"

	"github.com/septemberai/orch/engine"
)

// TestUndone: what a recovery writes for a provision of then is an operation that goes on.
func TestUndone(t *testing.T) {
	if op := undone(); op.Kind != engine.OpDestroy || !plans.Knows(&op) || op.Undo != "REGISTRY_RECOVERING" {
		t.Errorf("got %+v", op)
	}
}
