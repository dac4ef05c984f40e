package cmdline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestWait: a terminal shows that a call takes long, and nothing of that remains; for a
// short call, a script or a terminal without escapes nothing is shown.
func TestWait(t *testing.T) {
	for name, c := range map[string]struct {
		tty   bool
		term  string
		takes time.Duration
		shown string
	}{
		"long on a terminal":      {true, "xterm", 1700 * time.Millisecond, clearLine + "booting a\uFFFD ... 0s" + clearLine + "booting a\uFFFD ... 1s" + clearLine + "booting a\uFFFD ... 1s" + clearLine},
		"short on a terminal":     {true, "xterm", 400 * time.Millisecond, ""},
		"long on a dumb terminal": {true, "dumb", time.Hour, ""},
		"long in a script":        {false, "xterm", time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("")
				w.ErrTTY, w.Getenv = c.tty, func(string) string { return c.term }
				got, err := Wait(t.Context(), &Call{Env: &w.Env}, "booting a\x1b", func(context.Context) (int, error) {
					<-time.After(c.takes)
					return 5, context.Canceled
				})
				if got != 5 || !errors.Is(err, context.Canceled) || w.err.String() != c.shown {
					t.Errorf("got %d, %v, stderr %q", got, err, w.err.String())
				}
			})
		})
	}
}
