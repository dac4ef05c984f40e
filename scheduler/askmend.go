package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/registry"
)

// mendEvery is how often calls that come upon a damaged record ask for a pass.
const mendEvery = 2 * time.Second

// askToMend asks the leader for a pass at once when an error says that a record is
// damaged, and returns the error.
func (s *Scheduler) askToMend(err error) error {
	var u *registry.Unreadable
	if !errors.As(err, &u) || u.Newer {
		return err
	}
	now := time.Now()
	if last := s.mendAsked.Load(); now.UnixNano()-last > int64(mendEvery) && s.mendAsked.CompareAndSwap(last, now.UnixNano()) {
		s.ops.Background(func(ctx context.Context) {
			if err := s.store.RequestReconcile(ctx); err != nil && ctx.Err() == nil {
				s.log.Debug("the leader was not asked for a pass", "error", err)
			}
		})
	}
	return err
}
