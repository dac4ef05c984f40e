package harness

import (
	"testing"

	"github.com/septemberai/orch/internal/devstack"
)

// OwnStack starts agents, with their own configuration, that a test may disturb.
func OwnStack(t *testing.T, cfg ...devstack.Config) *devstack.Stack {
	t.Helper()
	c := devstack.Config{}
	if len(cfg) > 0 {
		c = cfg[0]
	}
	c.Binaries, c.Locked, c.InMemory = Binaries, c.Locked || Locked, true
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
