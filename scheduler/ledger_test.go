package scheduler

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/scheduler/operation"
)

// blockedLog tells of a line and does not return before it may.
type blockedLog struct{ line, may chan struct{} }

func (b *blockedLog) Write(p []byte) (int, error) {
	b.line <- struct{}{}
	<-b.may
	return io.Discard.Write(p)
}

// TestPersistWhileStopping: Run may wait already for what was begun, and nothing is added
// to that. What could not be written is told by the caller itself.
func TestPersistWhileStopping(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	out := &blockedLog{make(chan struct{}), make(chan struct{})}
	s := &Scheduler{ops: operation.New(operation.Deps{}), log: hclog.New(&hclog.LoggerOptions{Output: out})}
	s.ops.Start(stopped)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		s.persist(t.Context(), "row 1", func(context.Context) error { return errors.New("the database is away") })
	}()
	select {
	case <-out.line:
	case <-returned:
		<-out.line // another goroutine says it
		t.Error("a goroutine was begun that Run does not wait for")
	}
	close(out.may)
	<-returned
	s.ops.Wait()
}
