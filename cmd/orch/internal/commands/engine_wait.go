package commands

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// exitTimeout is the exit code of a wait that timed out, as in timeout(1).
const exitTimeout = 124

// destroyed is the state of an engine that no longer exists, in wait and watch.
const destroyed = "destroyed"

func engineWait() *spec {
	var state string
	states := append(slices.Clone(client.States), destroyed)
	return &spec{
		name: "engine wait", args: []string{"user_id"}, needs: needsPlatformKey,
		synopsis: "Wait for the end of an operation, or for a state",
		about: `Wait until no operation on a user's engine is in progress: the exit code is 0 if
the last operation succeeded, and 1 if it failed. With -for, wait until the engine
is in that state, whatever happens before. Errors that may be temporary, such as a
restart of the service, do not end the wait.`,
		examples: []string{"orch engine wait alice@example.com", "orch engine wait -for running -timeout 90s alice@example.com", "orch engine wait -for destroyed alice@example.com"},
		codes:    fmt.Sprintf("%d timed out (-timeout)", exitTimeout),
		timeout:  "maximum time to wait; 0: no limit",
		flags: func(f *flag.FlagSet) {
			f.StringVar(&state, "for", "", "wait for this `state`: "+strings.Join(states, ", "))
		},
		predict: map[string]complete.Predictor{"for": complete.PredictSet(states...)},
		run: func(ctx context.Context, in *invocation) error {
			if err := oneOf("-for", state, states); err != nil {
				return err
			}
			in.client.HTTP = &http.Client{} // the context limits all calls together
			bounded, cancel := ctx, context.CancelFunc(func() {})
			if in.timeout > 0 {
				bounded, cancel = context.WithTimeout(ctx, in.timeout)
			}
			defer cancel()
			w := &waiter{in: in, state: state}
			e, err := cmdline.Wait(bounded, in.Call, "waiting for the engine of "+in.Args[0], w.wait)
			if err != nil && ctx.Err() == nil && bounded.Err() != nil {
				return cmdline.WithCode(exitTimeout, fmt.Errorf("timed out after %s; the engine is %s", in.timeout, w.last()))
			}
			if err != nil {
				return err
			}
			t := describeEngine(e, false)
			o := e.LastOperation
			failed := state == "" && o != nil && o.Outcome != "ok"
			if o != nil {
				t.Row("Last operation", o.Kind+": "+o.Outcome)
			}
			if err := in.Show(e, t); err != nil || !failed {
				return err
			}
			return fmt.Errorf("the operation (%s) failed: %s\n  code %s", o.Kind, o.Message, o.Outcome)
		},
	}
}

// waiter waits for one engine.
type waiter struct {
	in     *invocation
	state  string         // empty: until no operation is in progress
	engine *client.Engine // as last read; nil: not read yet
}

// last describes the engine's state as last read.
func (w *waiter) last() string {
	switch {
	case w.engine == nil:
		return "unknown"
	case w.engine.Operation != nil:
		return w.engine.Status + ", and its operation (" + w.engine.Operation.Kind + ") is in progress"
	}
	return w.engine.Status
}

// wait returns the engine, without its key, when its condition is met. An error of the
// first call ends the wait, because it may be a mistake in the command.
func (w *waiter) wait(ctx context.Context) (*client.Engine, error) {
	done, err := w.look(ctx)
	if err == nil && !done {
		err = w.in.poll(ctx, "engine wait", w.look)
	}
	return w.engine, err
}

func (w *waiter) look(ctx context.Context) (done bool, err error) {
	user := w.in.Args[0]
	e, err := w.in.client.Engine(ctx, user)
	if errors.Is(err, client.ErrEngineNotFound) && (w.state == destroyed || w.state == "" && w.destroying()) {
		w.engine = &client.Engine{UserID: user, Status: destroyed}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	w.engine = withoutKey(e)
	if w.state == "" {
		return e.Operation == nil, nil
	}
	return e.Status == w.state, nil
}

// destroying reports whether the engine was being destroyed when it was last read.
func (w *waiter) destroying() bool { return w.engine != nil && w.engine.Status == client.Destroying }
