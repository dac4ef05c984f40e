package cmdline

import (
	"context"
	"errors"
	"syscall"
	"testing"
)

// TestInterrupted: a command that a signal ended has the exit code that shells expect,
// unless it had ended well.
func TestInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		signal syscall.Signal
		fails  bool
		code   int
	}{
		"Ctrl-C":            {syscall.SIGINT, true, 130},
		"terminated":        {syscall.SIGTERM, true, 143},
		"done nevertheless": {syscall.SIGINT, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			err := interruptible(func(ctx context.Context) error {
				if err := syscall.Kill(syscall.Getpid(), c.signal); err != nil {
					t.Error(err)
				}
				<-ctx.Done()
				if c.fails {
					return ctx.Err()
				}
				return nil
			})
			var coded *codeError
			switch {
			case c.code == 0 && err != nil, c.code != 0 && (!errors.As(err, &coded) || coded.code != c.code):
				t.Errorf("got %#v, want exit code %d", err, c.code)
			}
		})
	}
	if err := interruptible(func(context.Context) error { return ErrReported }); !errors.Is(err, ErrReported) {
		t.Errorf("without a signal: %v", err)
	}
}
