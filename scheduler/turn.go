package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/scheduler/operation"
)

// waitedInVain returns the error for a caller whose time was over before its turn; other
// errors stay the same.
func waitedInVain(err error) error {
	if !errors.Is(err, boot.ErrNoTurn) || errors.Is(err, context.Canceled) {
		return err
	}
	return &engine.Error{Code: engine.BackendUnavailable, Message: "too many engines of this product are booting; retry", Err: err, RetryAfter: retryCapacity}
}

// leaveAfter frees a place when an operation has a result, whether or not anybody waits for
// it: until then its engine is booting.
func (s *Scheduler) leaveAfter(o *operation.Operation, leave func()) {
	if o == nil || !s.ops.Background(func(context.Context) { <-o.Answered; leave() }) {
		leave()
	}
}
