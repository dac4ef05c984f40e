package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

const (
	// evacuateEvery is the interval at which the records of evacuations are read.
	evacuateEvery = 2 * time.Second
	// emptyLooks is how often in succession a node is found empty before that is believed:
	// another replica may put an engine there until it has read the record.
	emptyLooks = 4
	// busyPatience is how long an engine that works between requests is left where it is,
	// after the evacuation of its node has begun: a turn of an agent takes minutes.
	busyPatience = 10 * time.Minute
	askBusyAgain = 20 * time.Second
	// firstMoveRetry is the wait after the first failed move of an engine. It doubles up to
	// lastMoveRetry.
	firstMoveRetry, lastMoveRetry = 10 * time.Second, 5 * time.Minute
	// lastDownRetry is the longest wait after a move for which the engine had been stopped. The
	// first one is lastMoveRetry.
	lastDownRetry = time.Hour
	// brokenMost is how many engines may have been stopped in vain before no other running
	// engine is stopped.
	brokenMost = 2
	// evacuationsKept is for how long records of evacuations that have ended are kept.
	evacuationsKept = 7 * 24 * time.Hour
)

// evacuations moves engines away from nodes, on the leader.
type evacuations struct {
	s *Scheduler

	mu     sync.Mutex
	failed map[string]registry.FailedMove // of this leader's attempts, by engine_id; zero: the last one did not fail
	asked  map[string]string              // the last request that was seen, by node
	forced map[string]bool                // nodes whose forced drain was reported
	busy   map[string]time.Time           // when an engine said that it works, by engine_id
	empty  map[string]int                 // how often in succession a node was found empty
}

func newEvacuations(s *Scheduler) *evacuations {
	return &evacuations{s: s, failed: map[string]registry.FailedMove{}, asked: map[string]string{}, forced: map[string]bool{}, busy: map[string]time.Time{}, empty: map[string]int{}}
}

// run reads on every replica which nodes are evacuated, and evacuates them on the leader.
func (v *evacuations) run(ctx context.Context) {
	for pause.For(ctx, evacuateEvery) {
		if err := v.once(ctx); err != nil && ctx.Err() == nil {
			v.s.log.Debug("cannot evacuate nodes; retrying", "error", err)
		}
	}
}

func (v *evacuations) once(ctx context.Context) error {
	all, err := v.s.store.Evacuations(ctx)
	if err != nil {
		return err
	}
	active := map[string]*registry.Evacuation{}
	for _, e := range all {
		if e.Outcome == "" {
			active[e.NodeID] = e
		}
		v.s.noteEvacuating(e)
	}
	v.s.evacuating.Range(func(id, _ any) bool {
		if active[id.(string)] == nil {
			v.s.evacuating.Delete(id)
		}
		return true
	})
	if !v.s.informed() {
		clear(v.empty)
		return nil
	}
	if len(active) == 0 {
		v.mu.Lock()
		clear(v.failed)
		clear(v.asked)
		clear(v.empty)
		clear(v.busy)
		v.mu.Unlock()
	}
	var errs []error
	if v.s.opts.MoveOnDrain {
		errs = append(errs, v.followDrains(ctx, active))
	}
	for _, e := range active {
		errs = append(errs, v.evacuate(ctx, e))
	}
	for _, e := range all {
		if e.Outcome != "" && time.Since(e.EndedAt) > evacuationsKept {
			errs = append(errs, v.s.store.DeleteEvacuation(ctx, e))
		}
	}
	return errors.Join(errs...)
}

// followDrains begins to evacuate nodes that an operator drains. A forced drain has ended the
// processes already.
func (v *evacuations) followDrains(ctx context.Context, active map[string]*registry.Evacuation) error {
	rows := v.s.mirror.All()
	var errs []error
	for _, n := range v.s.cluster.Nodes() {
		if !n.Draining || n.Down || active[n.ID] != nil || len(onNode(rows, n.ID)) == 0 {
			continue
		}
		found, err := v.s.cluster.Scheduling(ctx, n.ID)
		if err != nil {
			errs = append(errs, err) // the other nodes do not wait for it
			continue
		}
		switch {
		case !found.Draining || found.Evacuated:
			continue
		case found.Forced:
			if !v.forced[n.ID] {
				v.s.log.Warn("a node is drained by force, so its engines were ended, and are started again when it is back: drain it with a deadline to have them moved", "node_id", n.ID)
			}
			v.forced[n.ID] = true
			continue
		}
		asked := newID()
		errs = append(errs, v.s.auditedEvacuation(ctx, audit.ActionEvacuate, actorSystem, n.ID, func() error {
			_, err := v.s.beginEvacuation(ctx, n.ID, found, registry.EvacuateDrain, asked)
			return err
		}, askedBy(asked)))
	}
	return errors.Join(errs...)
}

// evacuate begins the next moves of one node, or ends its evacuation.
func (v *evacuations) evacuate(ctx context.Context, e *registry.Evacuation) error {
	s := v.s
	if s.outdated(e) {
		return s.endEvacuation(ctx, e, registry.EvacuationCancelled)
	}
	on := onNode(s.mirror.All(), e.NodeID)
	if e.Cancelled {
		return v.cancel(ctx, e, on)
	}
	v.forgive(e, on)
	v.empty[e.NodeID]++
	if len(on) > 0 {
		v.empty[e.NodeID] = 0
	}
	if v.empty[e.NodeID] >= emptyLooks {
		if left, err := s.strangeVolumes(ctx, e.NodeID); err != nil || left > 0 {
			return errors.Join(err, v.note(ctx, e, on, fmt.Sprintf("%d volumes on the node belong to no engine that the service may move: see orch engine quarantine, orch volume list", left)))
		}
		return v.end(ctx, e, registry.EvacuationDone)
	}
	if until := e.Found.DrainUntil; e.Found.Drain && !until.IsZero() && time.Now().After(until) && !slices.ContainsFunc(on, moving) {
		return v.end(ctx, e, registry.EvacuationExpired)
	}
	now, err := s.cluster.Scheduling(ctx, e.NodeID)
	switch {
	case errors.Is(err, cluster.ErrNotFound):
		return s.endEvacuation(ctx, e, registry.EvacuationCancelled)
	case err != nil:
		return err
	case s.nodeSilent(e.NodeID):
		return v.note(ctx, e, on, "the node does not respond")
	case now.Forced:
		return v.note(ctx, e, on, "the node is drained by force, so Nomad runs nothing there")
	case !now.Eligible:
		return v.open(ctx, e, now, on) // moves begin when the view shows it
	case s.monitor.Held():
		return v.note(ctx, e, on, "too many engines fail at the moment")
	}
	return v.note(ctx, e, on, v.begin(ctx, e, on))
}

// open lets Nomad place workers on the node. How somebody had the node is in the record first,
// so that it is so again at the end.
func (v *evacuations) open(ctx context.Context, e *registry.Evacuation, now *cluster.Scheduling, on []*engine.Row) error {
	s := v.s
	if found := foundOf(now); found != e.Found && !(e.Found.Drain && !found.Drain) {
		e.Found = found
		if err := s.store.PutEvacuation(ctx, e); err != nil {
			return err
		}
	}
	err := s.cluster.MakeEligible(ctx, e.NodeID, now.Draining)
	if errors.Is(err, cluster.ErrDenied) {
		s.log.Error("a node cannot be evacuated, because the service's Nomad token may not change nodes: an evacuation needs node { policy = \"write\" }", "node_id", e.NodeID)
		return v.note(ctx, e, on, "the service's Nomad token may not change nodes")
	}
	if err != nil {
		return err
	}
	// Another leader may have ended it, while this replica was paused.
	if is, err := s.store.Evacuation(ctx, e.NodeID); err == nil && is.Outcome != "" {
		return s.closeNode(ctx, is, is.Outcome)
	}
	return nil
}

// end closes the node and the record.
func (v *evacuations) end(ctx context.Context, e *registry.Evacuation, outcome string) error {
	if err := v.s.closeNode(ctx, e, outcome); err != nil {
		return err
	}
	return v.s.endEvacuation(ctx, e, outcome)
}

// begin begins as many moves as may run at once, and returns what keeps it from that. Engines
// without a process come first: nobody waits for them, and the others find more room.
func (v *evacuations) begin(ctx context.Context, e *registry.Evacuation, on []*engine.Row) (waits string) {
	free, broken := v.s.opts.EvacuateParallel, 0
	for _, row := range on {
		if moving(row) {
			free--
		}
		if v.broke(e, row.EngineID) {
			broken++
		}
	}
	slices.SortStableFunc(on, func(a, b *engine.Row) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), a.CreatedAt.Compare(b.CreatedAt))
	})
	for _, row := range on {
		if free <= 0 || ctx.Err() != nil {
			break
		}
		if row.NodeID != e.NodeID || row.Op != nil || row.Warm != "" || !movable(row) || row.State == engine.Destroying || v.waits(e, row.EngineID) {
			continue
		}
		if row.State == engine.Running {
			if broken >= brokenMost && !v.broke(e, row.EngineID) {
				waits = "moves fail after engines were stopped for them, so no other running engine is stopped until they succeed"
				continue
			}
			if time.Since(e.RequestedAt) < busyPatience && v.works(ctx, row) {
				continue
			}
		}
		free--
		v.move(ctx, row)
	}
	return waits
}

// works reports whether an engine works between requests. It is asked again after a while.
func (v *evacuations) works(ctx context.Context, row *engine.Row) bool {
	if time.Since(v.busy[row.EngineID]) < askBusyAgain {
		return true
	}
	busy, err := v.s.detector.Busy(ctx, processOf(row))
	if err != nil || !busy {
		delete(v.busy, row.EngineID)
		return false
	}
	v.busy[row.EngineID] = time.Now()
	return true
}

// move begins to move an engine, and notes the result when it is there.
func (v *evacuations) move(ctx context.Context, row *engine.Row) {
	o, err := v.s.beginMove(ctx, row, actorSystem)
	if err != nil {
		v.result(row, nil, err)
		return
	}
	v.s.ops.Background(func(ctx context.Context) {
		_, err := o.Wait(ctx)
		select {
		case <-o.Ended: // a move that fails is undone after its end is told
		case <-ctx.Done():
			return
		}
		now, rerr := v.s.store.Engine(ctx, row.ProductID, row.UserID)
		if ctx.Err() != nil {
			return
		}
		v.result(row, now, err)
		if rerr == nil && now.EngineID == row.EngineID && now.Snapshot != nil && now.Snapshot.ID != "" {
			v.prune(ctx, now) // after a failure, too: it may have stored one
		}
	})
}
