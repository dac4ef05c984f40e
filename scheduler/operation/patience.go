package operation

import (
	"context"
	"time"

	"github.com/septemberai/orch/engine"
)

// UnderWay is the error for a caller whose patience ended before its operation did. The
// operation continues.
type UnderWay struct {
	Engine *engine.Row // its current row
}

func (*UnderWay) Error() string { return "scheduler: the operation is in progress" }

type patienceKey struct{}

// WithPatience makes calls wait for an operation only until that time, and return an
// UnderWay after it. The operation is always begun first.
func WithPatience(ctx context.Context, until time.Time) context.Context {
	return context.WithValue(ctx, patienceKey{}, until)
}

// impatience returns a channel that receives when a caller no longer wants to wait; nil: it
// waits as long as necessary.
func impatience(ctx context.Context) (over <-chan time.Time, stop func()) {
	until, ok := ctx.Value(patienceKey{}).(time.Time)
	if !ok {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(until))
	return timer.C, func() { timer.Stop() }
}

// Impatient returns an UnderWay with a row once the caller does not want to wait any
// longer.
func Impatient(ctx context.Context, row *engine.Row) error {
	if until, ok := ctx.Value(patienceKey{}).(time.Time); ok && time.Now().After(until) {
		return &UnderWay{row}
	}
	return nil
}
