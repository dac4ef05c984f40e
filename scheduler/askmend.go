package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/registry"
)

// mendEvery is the minimum time between two requests for a pass because of damaged records.
const mendEvery = 2 * time.Second

// askToMend requests a pass of the leader if an error is about a damaged record, and
// returns the error.
func (s *Scheduler) askToMend(err error) error {
	var u *registry.Unreadable
	if !errors.As(err, &u) || u.Newer {
		return err
	}
	now := time.Now()
	if last := s.mendAsked.Load(); now.UnixNano()-last > int64(mendEvery) && s.mendAsked.CompareAndSwap(last, now.UnixNano()) {
		s.ops.Background(func(ctx context.Context) {
			if err := s.store.RequestReconcile(ctx); err != nil && ctx.Err() == nil {
				s.log.Debug("cannot request a pass of the leader", "error", err)
			}
		})
	}
	return err
}
