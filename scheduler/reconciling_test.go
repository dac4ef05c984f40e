package scheduler

import (
	"testing"

	"github.com/septemberai/orch/engine"
)

// TestUndone: a recovery replaces an outdated provision by an operation that a replica can
// continue.
func TestUndone(t *testing.T) {
	if op := undone(); op.Kind != engine.OpDestroy || !plans.Knows(&op) || op.Undo != "REGISTRY_RECOVERING" {
		t.Errorf("got %+v", op)
	}
}
