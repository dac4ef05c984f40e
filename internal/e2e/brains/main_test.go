package brains

import (
	"testing"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// stacks limits how many tests have agents of their own at once: each has up to seven, and
// they take the cores from everything else.
var stacks = make(chan struct{}, 2)

// ownStack is harness.OwnStack for one of those tests.
func ownStack(t *testing.T, cfg devstack.Config) *devstack.Stack {
	t.Helper()
	stacks <- struct{}{}
	t.Cleanup(func() { <-stacks }) // after the agents have ended
	stack := harness.OwnStack(t, cfg)
	harness.Steady(t, stack)
	return stack
}
