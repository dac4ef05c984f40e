package harness

import (
	"testing"

	"github.com/septemberai/orch/internal/devstack"
)

// OwnStack starts agents that a test may hurt, with a configuration of their own.
func OwnStack(t *testing.T, cfg ...devstack.Config) *devstack.Stack {
	t.Helper()
	c := devstack.Config{}
	if len(cfg) > 0 {
		c = cfg[0]
	}
	c.Binaries, c.Locked = Binaries, Locked
	stack, err := devstack.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	return stack
}
