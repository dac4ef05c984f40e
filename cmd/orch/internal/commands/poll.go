package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// pollEvery is how often a command that waits or follows calls the service.
const pollEvery = time.Second

// poll calls look until it is done, and returns its error unless that may pass:
// while the service restarts or its database is away, poll says so once and waits.
// Its error is the context's when that ends.
func (in *invocation) poll(ctx context.Context, name string, look func(context.Context) (done bool, err error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		done, err := look(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !passes(err):
			return err
		case err != nil && !failing:
			_, _ = fmt.Fprintf(in.Env.Err, "orch %s: %s (waiting)\n", name, cmdline.Clean(describe(err)))
		case err == nil && done:
			return nil
		}
		failing = err != nil
	}
}

// passes says whether an error may be gone at the next call.
func passes(err error) bool {
	var e *client.Error
	return !errors.As(err, &e) || e.Status >= 500 || errors.Is(err, client.ErrRateLimited)
}
