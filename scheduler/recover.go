package scheduler

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// recoverEvery is how often operations of dead owners are looked for; a
	// look costs no call while every operation in the view runs here.
	recoverEvery = 3 * time.Second
	// unreachableEvery is how often the volumes of destroyed engines on silent nodes
	// are tried again.
	unreachableEvery = 15 * time.Second
	// recordsEvery is how often expired idempotency records are removed; until
	// then they count for nothing.
	recordsEvery = time.Hour
	// strayAfter is how long an operation may be this replica's own and not run
	// before it is taken for forgotten: longer than the write that makes it takes
	// to be answered.
	strayAfter = 10 * time.Second
)

// recoverLoop takes over the operations whose owner is gone and finishes or
// undoes them, at start and from then on.
func (s *Scheduler) recoverLoop(ctx context.Context) {
	select { // what a crash left is looked for at once
	case <-ctx.Done():
	case <-s.mirror.Synced():
	}
	for (s.Ready() != nil || !s.guard.OK()) && pause.For(ctx, pollEvery) {
	}
	strays := strays{}
	for ctx.Err() == nil {
		if s.Ready() == nil && s.guard.OK() {
			if err := s.recoverOnce(ctx, strays); err != nil && ctx.Err() == nil {
				s.log.Warn("cannot look for abandoned operations; trying again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(recoverEvery):
		}
	}
}

// strays are operations that this replica owns and does not run, with the time
// when each was first seen. The write that made one was given up as lost and came
// to be later, as when a paused agent of Consul goes on.
type strays map[string]time.Time

// forgotten says whether an operation of this replica's own was seen without
// running for long enough.
func (st strays) forgotten(opID string) bool {
	since, seen := st[opID]
	if !seen {
		st[opID] = time.Now()
		return false
	}
	return time.Since(since) > strayAfter
}

// recoverOnce looks through the rows in the view. It is a hint: an operation is
// taken over by check-and-set on the very row that was seen. What only a newer version
// can go on with is left to one.
func (s *Scheduler) recoverOnce(ctx context.Context, strays strays) error {
	var busy []*engine.Row
	for _, row := range s.mirror.All() {
		if row.Op != nil && knownStep(row.Op) && s.running(row.ProductID, row.UserID) == nil {
			busy = append(busy, row)
		}
	}
	if len(busy) == 0 {
		clear(strays)
		return nil
	}
	if !s.guard.Forward(ctx) { // else an operation of then might be begun once more
		return nil
	}
	// Rows before replicas: an owner has its key before it writes a row.
	replicas, err := s.store.Replicas(ctx)
	if err != nil {
		return err
	}
	idle := map[string]bool{}
	for _, row := range busy {
		if row.Op.Supersedes == s.replica.ID {
			// What was interrupted here does not run: its own word to the destroy was
			// lost, or it never began.
			if idle[row.Op.ID] = true; strays.forgotten(row.Op.ID) {
				row := row.Clone()
				row.Op.Supersedes = ""
				if err := s.store.Update(ctx, row); err != nil && !errors.Is(err, registry.ErrConflict) {
					return err
				}
			}
			continue
		}
		if own := row.Op.Owner == s.replica.ID; own {
			if idle[row.Op.ID] = true; !strays.forgotten(row.Op.ID) {
				continue
			}
		} else if replicas[row.Op.Owner] {
			continue
		}
		if err := s.takeOver(ctx, row.Clone()); err != nil {
			return err
		}
	}
	maps.DeleteFunc(strays, func(opID string, _ time.Time) bool { return !idle[opID] })
	return nil
}

// takeOver makes an operation that nobody runs this replica's, and launches it.
func (s *Scheduler) takeOver(ctx context.Context, row *engine.Row) error {
	launched, under := s.reserveLaunch(row.Op.ID)
	defer launched()
	if under != nil {
		return nil
	}
	before := row.Op.Owner
	row.Op.Owner = s.replica.ID
	row.Op.Deadline = engine.Within(row.Op.Deadline, time.Now().UTC(), max(s.limit(row.Op.Kind), s.opts.BootTimeout))
	err := s.store.Update(ctx, row)
	if errors.Is(err, registry.ErrConflict) {
		return nil // another replica was faster
	}
	if errors.Is(err, registry.ErrUnavailable) {
		s.adopt(row, nil) // it may have been written
	}
	if err != nil {
		return err
	}
	s.log.Info("taking over an operation", "engine_id", row.EngineID, "op", string(row.Op.Kind), "step", row.Op.Step, "from", before)
	s.launch(row)
	return nil
}

// unreachableLoop deletes, while this replica leads, the volumes of destroyed
// engines once their silent nodes are back, and what has expired.
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
			s.log.Warn("cannot look after unreachable volumes; trying again", "error", err)
		}
		if time.Since(swept) < recordsEvery {
			continue
		}
		if _, err := s.store.SweepIdempotency(ctx, time.Now()); err != nil {
			s.log.Warn("cannot remove expired idempotency records; trying again", "error", err)
			continue
		}
		swept = time.Now()
	}
}

func (s *Scheduler) sweepUnreachable(ctx context.Context) error {
	unreachable, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return err
	}
	unreachable = slices.DeleteFunc(unreachable, func(g *registry.UnreachableVolume) bool { return s.nodeSilent(g.NodeID) })
	for _, g := range s.proveUnreachable(ctx, unreachable) {
		left, err := s.removeVolumes(ctx, remainsOf(g))
		if err == nil && left != "" {
			s.log.Debug("an unreachable volume stays listed", "engine_id", g.EngineID, "why", left)
			s.noteLeft(ctx, g, left)
			continue
		}
		if err == nil {
			err = s.store.DeleteUnreachableVolume(ctx, g)
		}
		if err != nil {
			s.log.Warn("an unreachable volume cannot be deleted yet", "engine_id", g.EngineID, "error", err)
			continue
		}
		s.log.Info("deleted the volume of a destroyed engine", "engine_id", g.EngineID)
	}
	return nil
}

// noteLeft notes in the record of an unreachable volume why it could not be deleted.
func (s *Scheduler) noteLeft(ctx context.Context, g *registry.UnreachableVolume, why string) {
	if g.Left == why {
		return
	}
	g.Left = why
	if err := s.store.UpdateUnreachableVolume(ctx, g); err != nil && !errors.Is(err, registry.ErrConflict) {
		s.log.Warn("why an unreachable volume stays cannot be noted; trying again", "engine_id", g.EngineID, "error", err)
	}
}
