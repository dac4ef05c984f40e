package cmdline

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return i.signal.String() }

// interruptible runs a command whose context ends at SIGINT or SIGTERM. If it fails after
// that, the exit code is 128 and the signal's number, as a shell reports a process that a
// signal ended: 130 for Ctrl-C.
func interruptible(run func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			cancel(interrupted{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	err := run(ctx)
	signal.Stop(signals)
	cancel(nil)
	<-done
	var by interrupted
	if err != nil && errors.As(context.Cause(ctx), &by) {
		return WithCode(128+int(by.signal), err)
	}
	return err
}
