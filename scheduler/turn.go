package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler/boot"
)

// waitedInVain is what a caller hears whose time was over before its turn came; another
// error stays as it is.
func waitedInVain(err error) error {
	if !errors.Is(err, boot.ErrNoTurn) || errors.Is(err, context.Canceled) {
		return err
	}
	return &engine.Error{Code: engine.BackendUnavailable, Message: "too many engines of this product are booting for another one; try again", Err: err, RetryAfter: retryCapacity}
}

// leaveAfter gives a place back when an operation has answered, whether or not anybody
// waits for its answer: until then its engine is booting.
func (s *Scheduler) leaveAfter(o *operation, leave func()) {
	if o == nil || !s.background(func(context.Context) { <-o.answered; leave() }) {
		leave()
	}
}
