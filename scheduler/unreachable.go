package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/registry"
)

const (
	// unreachableEvery is the interval of attempts to delete unreachable volumes.
	unreachableEvery = 15 * time.Second
	// recordsEvery is the interval of deleting expired idempotency records, which have no
	// effect in the meantime.
	recordsEvery = time.Hour
)

// unreachableLoop deletes, while this replica leads, unreachable volumes whose nodes are
// back, and expired records.
func (s *Scheduler) unreachableLoop(ctx context.Context) {
	var swept time.Time
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(unreachableEvery):
		}
		if s.Ready() != nil || !s.guard.OK() || !s.replica.Leader() {
			continue
		}
		if err := s.sweepUnreachable(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot delete unreachable volumes; retrying", "error", err)
		}
		if time.Since(swept) < recordsEvery {
			continue
		}
		if _, err := s.store.SweepIdempotency(ctx, time.Now()); err != nil {
			s.log.Warn("cannot delete expired idempotency records; retrying", "error", err)
			continue
		}
		swept = time.Now()
	}
}

func (s *Scheduler) sweepUnreachable(ctx context.Context) error {
	s.sweepDiscarded(ctx)
	all, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return err
	}
	unreachable := slices.DeleteFunc(slices.Clone(all), func(g *registry.UnreachableVolume) bool { return s.nodeSilent(g.NodeID) })
	for _, g := range s.proveUnreachable(ctx, unreachable) {
		r := remainsOf(g)
		for _, other := range all {
			if other.EngineID == g.EngineID && other.VolumeID != g.VolumeID {
				r.others = append(r.others, other.VolumeID)
			}
		}
		left, err := s.removeVolumes(ctx, r)
		if err == nil && left != "" {
			s.log.Debug("cannot delete an unreachable volume yet", "engine_id", g.EngineID, "why", left)
			s.noteLeft(ctx, g, left)
			continue
		}
		if err == nil {
			err = s.store.DeleteUnreachableVolume(ctx, g)
		}
		if err != nil {
			s.log.Warn("cannot delete an unreachable volume yet", "engine_id", g.EngineID, "error", err)
			continue
		}
		s.log.Info("deleted the volume of a destroyed engine", "engine_id", g.EngineID)
	}
	return nil
}

// noteLeft writes into the record of an unreachable volume why it could not be deleted.
func (s *Scheduler) noteLeft(ctx context.Context, g *registry.UnreachableVolume, why string) {
	if g.Left == why {
		return
	}
	g.Left = why
	if err := s.store.UpdateUnreachableVolume(ctx, g); err != nil && !errors.Is(err, registry.ErrConflict) {
		s.log.Warn("cannot record why an unreachable volume could not be deleted; retrying", "engine_id", g.EngineID, "error", err)
	}
}
