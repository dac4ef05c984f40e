package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/engine"
)

// UnderWay is the error that a caller gets whose patience ended before its operation
// did. The operation goes on.
type UnderWay struct {
	Engine *engine.Row // as it is now
}

func (*UnderWay) Error() string { return "scheduler: the operation is under way" }

type patienceKey struct{}

// WithPatience has the calls that wait for an operation wait for it until then, and
// return an UnderWay after that. An operation is always begun first.
func WithPatience(ctx context.Context, until time.Time) context.Context {
	return context.WithValue(ctx, patienceKey{}, until)
}

// impatience is when a caller does not want to wait any longer; a nil channel: it waits
// for as long as it takes.
func impatience(ctx context.Context) (over <-chan time.Time, stop func()) {
	until, ok := ctx.Value(patienceKey{}).(time.Time)
	if !ok {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(until))
	return timer.C, func() { timer.Stop() }
}

// impatient returns an UnderWay with a row once the caller does not want to wait any
// longer.
func impatient(ctx context.Context, row *engine.Row) error {
	if until, ok := ctx.Value(patienceKey{}).(time.Time); ok && time.Now().After(until) {
		return &UnderWay{row}
	}
	return nil
}
