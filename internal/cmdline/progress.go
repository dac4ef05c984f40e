package cmdline

import (
	"context"
	"fmt"
	"time"
)

const (
	// quiet is how long a call runs before its progress is shown.
	quiet = 500 * time.Millisecond
	// clearLine erases the terminal's current line (ECMA-48, EL).
	clearLine = "\r\x1b[K"
)

// Wait runs a call that may take long, and shows on a terminal for how long it has been
// running.
func Wait[T any](ctx context.Context, c *Call, what string, do func(context.Context) (T, error)) (T, error) {
	if !c.Env.ErrTTY || c.Env.Getenv("TERM") == "dumb" {
		return do(ctx)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		c.progress(what, done)
	}()
	defer func() { close(done); <-ended }()
	return do(ctx)
}

// progress writes to one line of the terminal until done is closed, and erases it.
func (c *Call) progress(what string, done <-chan struct{}) {
	began := time.Now()
	tick := time.NewTicker(quiet)
	defer tick.Stop()
	shown := false
	for {
		select {
		case <-tick.C:
			shown = true
			_, _ = fmt.Fprintf(c.Env.Err, "%s%s ... %ds", clearLine, Clean(what), int(time.Since(began).Seconds()))
		case <-done:
			if shown {
				_, _ = fmt.Fprint(c.Env.Err, clearLine)
			}
			return
		}
	}
}
