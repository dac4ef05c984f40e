package remote

import (
	"context"
	"fmt"
	"time"
)

const (
	// quiet is how long a call may take before its progress is shown.
	quiet = 500 * time.Millisecond
	// clearLine takes back what is on the terminal's line (ECMA-48, EL).
	clearLine = "\r\x1b[K"
)

// wait makes a call that may take long, and shows on a terminal for how long it
// has been waited.
func wait[T any](ctx context.Context, in *invocation, what string, call func(context.Context) (T, error)) (T, error) {
	if !in.env.ErrTTY {
		return call(ctx)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		in.progress(what, done)
	}()
	defer func() { close(done); <-ended }()
	return call(ctx)
}

// progress writes on one line of the terminal until done, and leaves it empty.
func (in *invocation) progress(what string, done <-chan struct{}) {
	began := time.Now()
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	shown := false
	for {
		select {
		case <-tick.C:
			shown = true
			_, _ = fmt.Fprintf(in.env.Err, "%s%s ... %ds", clearLine, clean(what), int(time.Since(began).Seconds()))
		case <-done:
			if shown {
				_, _ = fmt.Fprint(in.env.Err, clearLine)
			}
			return
		}
	}
}
