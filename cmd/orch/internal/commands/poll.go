package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// pollEvery is the interval at which waiting commands call the service.
const pollEvery = time.Second

// poll calls look until it is done. It returns look's error, unless the error may be
// temporary: while the service restarts or its database is unavailable, poll prints one
// line and waits. It returns the context's error when the context ends.
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

// passes reports whether an error may be temporary.
func passes(err error) bool {
	var e *client.Error
	return !errors.As(err, &e) || e.Status >= 500 || errors.Is(err, client.ErrRateLimited)
}
