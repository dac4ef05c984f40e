package scheduler

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/scheduler/operation"
)

// blockedLog reports a line on one channel, and blocks until it receives from the other.
type blockedLog struct{ line, may chan struct{} }

func (b *blockedLog) Write(p []byte) (int, error) {
	b.line <- struct{}{}
	<-b.may
	return io.Discard.Write(p)
}

// TestPersistWhileStopping: while the service stops, Run may already wait for all goroutines,
// so none is started any more. The caller itself logs the row that could not be written.
func TestPersistWhileStopping(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	out := &blockedLog{make(chan struct{}), make(chan struct{})}
	s := &Scheduler{ops: operation.New(operation.Deps{}), log: hclog.New(&hclog.LoggerOptions{Output: out})}
	s.ops.Start(stopped)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		s.persist(t.Context(), "row 1", func(context.Context) error { return errors.New("the database is down") })
	}()
	select {
	case <-out.line:
	case <-returned:
		<-out.line // another goroutine logs it
		t.Error("a goroutine was started for which Run does not wait")
	}
	close(out.may)
	<-returned
	s.ops.Wait()
}
