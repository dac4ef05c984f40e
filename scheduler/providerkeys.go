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
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/reconcile"
)

const (
	// rolloutShare is the fraction of the running engines that are restarted concurrently
	// for new provider keys: one in fifty, and at least one.
	rolloutShare = 50
	// rolloutFailures is the number of successive failures that are blamed on the keys, not
	// on the engines.
	rolloutFailures = 3
	// rolloutIdle is the interval at which the leader checks whether there is something to
	// roll out, and rolloutBusy the interval during a rollout.
	rolloutIdle = 3 * time.Second
	rolloutBusy = time.Second
)

// noteProviderKeys records, before a process is started, the lowest version of the provider
// keys that it can have: Nomad reads them afterwards.
func (o *work) noteProviderKeys(ctx context.Context) error {
	if len(o.s.opts.ProviderKeys) == 0 || o.Row.Op.Kind == engine.OpRotateKey {
		return nil
	}
	version, err := o.s.vault.EnvVersion(ctx)
	if err != nil {
		if o.Row.Op.Kind == engine.OpRestart {
			return err
		}
		return nil // the earlier version is still correct
	}
	o.Row.EnvVersion = version
	return nil
}

// RolloutStatus is the status of a rollout of provider keys.
type RolloutStatus string

// The statuses of a rollout.
const (
	RolloutNone    RolloutStatus = "none" // never requested
	RolloutRolling RolloutStatus = "rolling"
	RolloutHalted  RolloutStatus = "halted" // too many successive engines did not come back
	RolloutDone    RolloutStatus = "done"
)

// RolloutProgress is the progress of a rollout of provider keys.
type RolloutProgress struct {
	Status        RolloutStatus
	TargetVersion int
	// Pending counts the running engines that have older keys, Restarted those that were
	// restarted for these keys, and Failed those of them that are failed now.
	Pending, Restarted, Failed int
}

// ApplyProviderKeys makes the leader restart, a few concurrently, the running engines whose
// provider keys are older than those in Vault. It resumes a halted rollout.
// INVALID_REQUEST: engines get no provider keys.
func (s *Scheduler) ApplyProviderKeys(ctx context.Context) (RolloutProgress, error) {
	if len(s.opts.ProviderKeys) == 0 {
		return RolloutProgress{}, engine.Errorf(engine.InvalidRequest, "this service has no provider keys: set ORCH_ENGINE_ENV_PASSTHROUGH to the names of variables that are set")
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

// ProviderKeys returns the progress of the last rollout of provider keys.
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

// outdated reports whether a running engine has older keys than those of a rollout, and was
// not restarted for it yet.
func outdated(row *engine.Row, r *registry.Rollout) bool {
	return row.State == engine.Running && row.EnvVersion < r.TargetVersion && row.RestartedFor < r.TargetVersion
}

// rolloutLoop rolls provider keys out while this replica leads.
func (s *Scheduler) rolloutLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait := rolloutIdle
		if s.Ready() == nil && s.guard.OK() && s.replica.Leader() {
			more, err := s.rollOut(operation.WithRequestID(ctx, newID()))
			if err != nil && ctx.Err() == nil {
				s.log.Warn("cannot roll out the provider keys; retrying", "error", err)
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

// rollOut restarts the next few engines, waits for them, and reports whether more are
// waiting. Its whole state is in the rows and in the record, so the next leader continues.
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

// restartFor restarts one engine for a rollout, and waits until it is healthy.
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
		_, err = o.Wait(ctx)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrConflict):
		return nil // a concurrent destroy or stop was faster
	case operation.EndsRestart(AsError(err).Code):
		return fmt.Errorf("%w: %w", errNotRestarted, err)
	}
	return err
}

// countRestarts counts successive failed restarts, and halts the rollout if there are too
// many.
func (s *Scheduler) countRestarts(ctx context.Context, r *registry.Rollout, results []error) error {
	before := r.Failures
	var other []error
	for _, err := range results {
		switch {
		case err == nil:
			r.Failures = 0
		case errors.Is(err, errNotRestarted):
			r.Failures++
			s.log.Warn("an engine did not become healthy with the new provider keys", "error", err)
		default:
			other = append(other, err)
		}
		r.Halted = r.Halted || r.Failures >= rolloutFailures
	}
	if r.Failures != before || r.Halted {
		if r.Halted {
			s.log.Error("halted the rollout of the provider keys: too many successive engines did not become healthy; inspect one of them, then resume with `orch provider-keys apply`", "version", r.TargetVersion)
		}
		other = append(other, reconcile.MovedOn(s.store.UpdateRollout(ctx, r)))
	}
	return errors.Join(other...)
}
