package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/reconcile"
)

const (
	// rolloutShare is the part of the running engines that may be restarted at a
	// time for new provider keys: one in fifty, and at least one.
	rolloutShare = 50
	// rolloutFailures in a row are taken for the keys' fault, not the engines'.
	rolloutFailures = 3
	// rolloutIdle is how often the leader looks whether there is something to
	// roll out; rolloutBusy while there is.
	rolloutIdle = 3 * time.Second
	rolloutBusy = time.Second
)

// reasonNotRestarted is the reason of an engine whose restart could not be
// carried out.
const reasonNotRestarted = "not_restarted"

// endsRestart says whether an error means that the engine did not come back; at
// any other a restart is tried again.
func endsRestart(code engine.Code) bool {
	switch code {
	case engine.PortExhaustion, engine.CapacityExhausted, engine.StopUnconfirmed:
		return true
	}
	return isBootOutcome(code)
}

// noteProviderKeys notes, before a process is started, which provider keys it
// will have at least: Nomad reads them after that.
func (o *operation) noteProviderKeys(ctx context.Context) error {
	if len(o.s.opts.ProviderKeys) == 0 || o.row.Op.Kind == engine.OpRotateKey {
		return nil
	}
	version, err := o.s.vault.EnvVersion(ctx)
	if err != nil {
		if o.row.Op.Kind == engine.OpRestart {
			return err
		}
		return nil // what it had before is still true
	}
	o.row.EnvVersion = version
	return nil
}

// RolloutStatus is how a rollout of provider keys stands, in a word.
type RolloutStatus string

// The words of a rollout.
const (
	RolloutNone    RolloutStatus = "none" // never asked for
	RolloutRolling RolloutStatus = "rolling"
	RolloutHalted  RolloutStatus = "halted" // too many engines in a row did not come back
	RolloutDone    RolloutStatus = "done"
)

// RolloutProgress is how far the provider keys of a version have come.
type RolloutProgress struct {
	Status        RolloutStatus
	TargetVersion int
	// Pending are the running engines that have older keys; Restarted those that
	// were restarted for these, and Failed those of them that are failed now.
	Pending, Restarted, Failed int
}

// ApplyProviderKeys has the leader restart, a few at a time, the running engines
// whose provider keys are older than those in Vault now. After a halt it begins
// again. INVALID_REQUEST: engines get no provider keys.
func (s *Scheduler) ApplyProviderKeys(ctx context.Context) (RolloutProgress, error) {
	if len(s.opts.ProviderKeys) == 0 {
		return RolloutProgress{}, engine.Errorf(engine.InvalidRequest, "this service gives its engines no provider keys: ORCH_ENGINE_ENV_PASSTHROUGH names none that is set")
	}
	version, err := s.vault.EnvVersion(ctx)
	if err != nil {
		return RolloutProgress{}, err
	}
	r, err := s.store.RequestRollout(ctx, version, time.Now())
	if err != nil {
		return RolloutProgress{}, err
	}
	select {
	case s.rollout <- struct{}{}:
	default:
	}
	return s.progress(r)
}

// ProviderKeys says how far the last rollout of provider keys has come.
func (s *Scheduler) ProviderKeys(ctx context.Context) (RolloutProgress, error) {
	r, err := s.store.Rollout(ctx)
	if err != nil {
		return RolloutProgress{}, err
	}
	return s.progress(r)
}

func (s *Scheduler) progress(r *registry.Rollout) (RolloutProgress, error) {
	p := RolloutProgress{Status: RolloutNone, TargetVersion: r.TargetVersion}
	if r.TargetVersion == 0 {
		return p, nil
	}
	if _, err := s.viewAge(); err != nil {
		return p, err
	}
	for _, row := range s.mirror.All() {
		switch {
		case row.ProductID == engine.WarmProduct: // which is replaced
		case outdated(row, r) || row.Op != nil && row.Op.Kind == engine.OpRestart:
			p.Pending++
		case row.RestartedFor < r.TargetVersion:
		case row.State == engine.Failed:
			p.Failed++
			p.Restarted++
		default:
			p.Restarted++
		}
	}
	switch {
	case r.Halted:
		p.Status = RolloutHalted
	case p.Pending > 0:
		p.Status = RolloutRolling
	default:
		p.Status = RolloutDone
	}
	return p, nil
}

// outdated says whether a running engine has older keys than a rollout is for,
// and was not restarted for it yet.
func outdated(row *engine.Row, r *registry.Rollout) bool {
	return row.State == engine.Running && row.EnvVersion < r.TargetVersion && row.RestartedFor < r.TargetVersion
}

// rolloutLoop rolls provider keys out, while this replica leads.
func (s *Scheduler) rolloutLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait := rolloutIdle
		if s.Ready() == nil && s.guard.OK() && s.replica.Leader() {
			more, err := s.rollOut(WithRequestID(ctx, newID()))
			if err != nil && ctx.Err() == nil {
				s.log.Warn("cannot roll out the provider keys; trying again", "error", err)
			} else if more {
				wait = rolloutBusy
			}
		}
		select {
		case <-ctx.Done():
		case <-s.rollout:
		case <-time.After(wait):
		}
	}
}

// rollOut restarts the next few engines and waits for them. It says whether more
// are waiting. All that it knows is in the rows and in the record, so the next
// leader goes on where this one ended.
func (s *Scheduler) rollOut(ctx context.Context) (more bool, err error) {
	r, err := s.store.Rollout(ctx)
	if err != nil || r.TargetVersion == 0 || r.Halted {
		return false, err
	}
	running, underWay := 0, 0
	var waiting []*engine.Row
	for _, row := range s.mirror.All() {
		if row.State != engine.Running || row.ProductID == engine.WarmProduct { // which is replaced
			continue
		}
		running++
		switch {
		case row.Op != nil && row.Op.Kind == engine.OpRestart:
			underWay++
		case row.Op == nil && outdated(row, r) && !s.nodeSilent(row.NodeID):
			waiting = append(waiting, row)
		}
	}
	if len(waiting) == 0 {
		return underWay > 0, nil
	}
	if s.monitor.Held() {
		return true, nil
	}
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return true, err
	}
	slices.SortFunc(waiting, func(a, b *engine.Row) int { return a.CreatedAt.Compare(b.CreatedAt) })
	atOnce := max(1, running/rolloutShare) - underWay
	if atOnce <= 0 {
		return true, nil
	}
	waiting = waiting[:min(atOnce, len(waiting))]
	var wave sync.WaitGroup
	errs := make([]error, len(waiting))
	for i, row := range waiting {
		wave.Go(func() { errs[i] = s.restartFor(ctx, row, r) })
	}
	wave.Wait()
	return true, s.countRestarts(ctx, r, errs)
}

var errNotRestarted = errors.New("the engine did not come back from its restart")

// restartFor restarts one engine for a rollout and waits until it is healthy.
// errNotRestarted: it is not.
func (s *Scheduler) restartFor(ctx context.Context, seen *engine.Row, r *registry.Rollout) error {
	row, err := s.store.Engine(ctx, seen.ProductID, seen.UserID)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.Op != nil || !outdated(row, r) {
		return nil
	}
	o, err := s.propose(ctx, row, proposal{
		kind: engine.OpRestart, action: audit.ActionStart, actor: actorSystem, envVersion: r.TargetVersion,
		details:  map[string]any{"why": "provider_keys", "version": r.TargetVersion},
		backends: []string{"nomad", "vault"}, prepare: func(*engine.Row) error { return nil },
	})
	if err == nil {
		_, err = o.wait(ctx)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrConflict):
		return nil // a destroy or a stop was faster
	case endsRestart(AsError(err).Code):
		return fmt.Errorf("%w: %w", errNotRestarted, err)
	}
	return err
}

// countRestarts keeps how many restarts in a row failed, and halts the rollout
// when it is too many.
func (s *Scheduler) countRestarts(ctx context.Context, r *registry.Rollout, results []error) error {
	before := r.Failures
	var other []error
	for _, err := range results {
		switch {
		case err == nil:
			r.Failures = 0
		case errors.Is(err, errNotRestarted):
			r.Failures++
			s.log.Warn("an engine did not come back with the new provider keys", "error", err)
		default:
			other = append(other, err)
		}
		r.Halted = r.Halted || r.Failures >= rolloutFailures
	}
	if r.Failures != before || r.Halted {
		if r.Halted {
			s.log.Error("halted the rollout of the provider keys: too many engines in a row did not come back; look at one, then `orch provider-keys apply` goes on", "version", r.TargetVersion)
		}
		other = append(other, reconcile.MovedOn(s.store.UpdateRollout(ctx, r)))
	}
	return errors.Join(other...)
}
