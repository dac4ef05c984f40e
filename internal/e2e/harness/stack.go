package harness

import (
	"sync"
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

// steady are the stacks whose servers no test disturbs, apart from the shared one.
var steady sync.Map

// Steady says that a test disturbs nodes of its stack at most, not Nomad's servers, Consul or
// Vault: the calls to its services are retried as those on the shared stack.
func Steady(t *testing.T, stack *devstack.Stack) {
	steady.Store(stack, true)
	t.Cleanup(func() { steady.Delete(stack) })
}

func undisturbed(stack *devstack.Stack) bool {
	_, is := steady.Load(stack)
	return is || stack == Shared
}
