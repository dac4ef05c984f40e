package health

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// If many engines fail together, the engines are not the cause.
const (
	stormLeast  = 10               // minimum number of failed engines
	stormShare  = 5                // and more than one in this number
	canaryEvery = 10 * time.Second // between restarts that test whether the storm is over
)

// FleetHealth counts the engines that should run, and those that do not, without engines
// that show nothing about a common cause: those on nodes that are down, with volumes that
// Nomad has lost, or that the service has given up.
func FleetHealth(rows []*engine.Row) (failed, wanted int) {
	for _, e := range rows {
		if e.Desired != engine.Running || e.State == engine.Destroying {
			continue
		}
		retried := e.Op != nil && e.Op.Action == audit.ActionAutoRestartStart
		switch {
		case e.State == engine.Failed && (e.Reason == engine.ReasonNodeDown || e.Reason == engine.ReasonVolumeUnknown || e.Restarts != nil && e.Restarts.GaveUp):
			continue
		case e.State == engine.Failed, retried:
			failed++
		}
		wanted++
	}
	return failed, wanted
}

// IsStorm reports whether this number of failed engines, of those that should run, is a
// storm.
func IsStorm(failed, wanted int) bool { return failed >= stormLeast && stormShare*failed > wanted }

// storm holds restarts back while many engines fail together. Single canaries test whether
// it is over: a healthy one doubles how many may be restarted concurrently, a failing one
// resets that to one. So a storm ends without manual action.
type storm struct {
	mu        sync.Mutex
	on        bool
	allowance int // canaries in a round
	begun     int // in this round
	ended     int
	failed    bool // one of this round failed
	next      time.Time
}

// weigh records the health of the fleet, and reports whether a storm begins or ends.
func (s *storm) weigh(failed, wanted int) (on, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.on
	s.on = IsStorm(failed, wanted)
	if s.on && !was {
		s.allowance, s.begun, s.ended, s.failed, s.next = 1, 0, 0, false, time.Time{}
	}
	return s.on, s.on != was
}

func (s *storm) held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

// permit reports whether a restart may begin now. The result of a canary must be passed to
// told.
func (s *storm) permit(now time.Time) (canary, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.on:
		return false, true
	case s.begun >= s.allowance, s.begun == 0 && now.Before(s.next):
		return false, false
	}
	if s.begun == 0 {
		s.next = now.Add(canaryEvery)
	}
	s.begun++
	return true, true
}

// told records the result of a canary, and begins the next round after the last one.
func (s *storm) told(healthy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended++
	s.failed = s.failed || !healthy
	if s.ended < s.begun || s.begun < s.allowance && !s.failed {
		return
	}
	if s.failed {
		s.allowance = 1
	} else {
		s.allowance, s.next = min(2*s.allowance, 1<<20), time.Time{}
	}
	s.begun, s.ended, s.failed = 0, 0, false
}

// watchStorm weighs the fleet, and records the beginning and the end of a storm in one
// audit row, even if the leader changes meanwhile.
func (m *Monitor) watchStorm(ctx context.Context, rows []*engine.Row) error {
	failed, wanted := FleetHealth(rows)
	on, changed := m.storm.weigh(failed, wanted)
	if changed {
		m.stormTold = false
	}
	if m.stormTold {
		return nil
	}
	told, err := m.d.Store.Storm(ctx)
	if u := (*registry.Unreadable)(nil); errors.As(err, &u) {
		// It counts as not recorded.
		if err = m.d.Store.DeleteUnreadable(ctx, u); err == nil {
			err = registry.ErrNotFound
		}
	}
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	switch {
	case on && told == nil:
		m.d.Log.Error("many engines fail together: restarts are held back", "failed", failed, "of", wanted)
		id, err := m.d.Engines.Begin(ctx, audit.ActionAutoRestartHeld, map[string]any{"failed": failed, "of": wanted})
		if err != nil {
			return err
		}
		if err := m.d.Store.PutStorm(ctx, &registry.Storm{Began: time.Now().UTC(), AuditID: id}); err != nil {
			return err
		}
	case !on && told != nil:
		m.d.Log.Info("engines no longer fail together: restarts resume")
		m.d.Engines.Complete(ctx, told.AuditID, time.Since(told.Began))
		if err := m.d.Store.DeleteStorm(ctx, told); err != nil {
			return err
		}
	}
	m.stormTold = true
	return nil
}
