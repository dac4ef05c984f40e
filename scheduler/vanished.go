package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/jobs"
)

// vanishedGrace is how long a process can live whose allocation Nomad has forgotten:
// its node learns of it with its next list of allocations, and then ends it.
const vanishedGrace = killGrace + killMargin

// vanishedLook is how often the node of such a process is looked at: less than the
// shortest time in which the servers give a node up and have it back (10 s).
const vanishedLook = 2 * time.Second

var (
	// errVanished: the row knows of a process whose allocation Nomad does not know.
	errVanished = errors.New("nomad does not know the engine's allocation any more")
	// errStateLost: Nomad does not know the engine's volume either, so nothing that
	// it says of the engine's processes proves anything.
	errStateLost = errors.New("nomad does not know the engine's volume any more")
)

// whatToDo ends the messages about an engine whose volume Nomad does not know.
const whatToDo = "Nomad does not know the engine's volume any more: its servers or its node lost their state (docs/operations.md, orch node adopt)"

// brainKnown says whether Nomad knows the volume of a row.
func (s *Scheduler) brainKnown(ctx context.Context, row *engine.Row) (bool, error) {
	_, err := s.cluster.Volume(ctx, row.VolumeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// lastProcess is the allocation of the process that a row knows of; "": it knows of
// none.
func lastProcess(row *engine.Row) string {
	if row.Frozen != nil {
		return row.Frozen.AllocID
	}
	return row.AllocID
}

// missed says what it means for an operation that no process of its engine is left
// among the allocations that Nomad knows: nil when all that the row knows of are
// among them, errVanished when one is not. Where Nomad knows no allocation at all,
// it must know the volume (errStateLost).
func (o *operation) missed(ctx context.Context, allocs []cluster.Alloc) error {
	kind, row := o.row.Op.Kind, o.row
	if row.Vanished != nil {
		return errVanished
	}
	if id := lastProcess(row); id != "" && kind != engine.OpProvision && !slices.Contains(row.Unproven, id) {
		for _, a := range allocs {
			if a.ID == id {
				return nil
			}
		}
		return errVanished
	}
	mayRun := kind == engine.OpStart || row.Op.From == engine.Failed || row.Op.From == engine.Running
	if len(allocs) > 0 || row.VolumeID == "" || kind == engine.OpDestroy || !mayRun {
		return nil
	}
	known, err := o.s.brainKnown(ctx, row)
	if err == nil && !known {
		err = o.unconfirmed(ctx, errStateLost)
	}
	return err
}

// outlastVanished waits until a process whose allocation Nomad has forgotten is surely
// gone, after errVanished. The row says since when that is counted, so that every
// owner of the operation counts from the same moment.
func (o *operation) outlastVanished(ctx context.Context) error {
	if o.row.Vanished == nil {
		o.row.Vanished = &engine.Vanished{AllocID: lastProcess(o.row), NodeID: o.row.NodeID, Since: time.Now().UTC()}
		o.log.Warn("Nomad does not know the engine's allocation any more", "allocation", o.row.Vanished.AllocID)
		if err := o.save(ctx); err != nil {
			return err
		}
	}
	for {
		err := o.whileOwned(ctx, o.vanishedGone)
		switch {
		case err == nil && len(o.row.Unproven) > 0:
			return o.save(ctx) // it is not waited for again
		case !errors.Is(err, errCountAnew):
			return err
		}
		if err := o.save(ctx); err != nil {
			return err
		}
	}
}

// errCountAnew: the time since when a vanished process is counted has changed.
var errCountAnew = errors.New("scheduler: the node was out of touch")

// vanishedGone waits for that while Nomad still knows the volume, so it was the job
// alone that was purged; and the node has been in touch with the servers for as long
// as a process may take to end. Destroying does not wait for what cannot be
// confirmed: the volume is listed as unreachable.
func (o *operation) vanishedGone(ctx context.Context) error {
	err := o.awaitVanished(ctx)
	if o.row.Op.Kind == engine.OpDestroy && (errors.Is(err, errNodeSilent) || errors.Is(err, errStateLost)) {
		return nil
	}
	if err != nil {
		return o.unconfirmed(ctx, err)
	}
	o.log.Info("a process that Nomad had forgotten has had the time to end", "allocation", o.row.Vanished.AllocID)
	if o.s.opts.Job.Driver == jobs.Docker && !slices.Contains(o.row.Unproven, o.row.Vanished.AllocID) {
		// The docker daemon may have been away when the container was to end.
		o.row.Unproven = append(o.row.Unproven, o.row.Vanished.AllocID)
	}
	o.row.Vanished, o.row.AllocID = nil, ""
	return nil
}

func (o *operation) awaitVanished(ctx context.Context) error {
	known, err := o.s.brainKnown(ctx, o.row)
	if err == nil && !known {
		err = errStateLost
	}
	if err != nil {
		return err
	}
	for v := o.row.Vanished; ; {
		inTouch, silent, err := o.s.inTouch(ctx, o.row.NodeID)
		if err != nil {
			return err
		}
		if inTouch != v.InTouch || time.Now().Before(v.Since) { // or it was noted by a clock that was ahead
			v.InTouch, v.Since = inTouch, time.Now().UTC()
			return errCountAnew
		}
		left := time.Until(v.Since.Add(vanishedGrace))
		switch {
		case silent:
			return errNodeSilent
		case inTouch == 0:
			left = vanishedLook
		case left <= 0:
			return nil
		}
		if !pause.For(ctx, min(left, vanishedLook)) {
			return ctx.Err()
		}
	}
}

// inTouch is cluster.Node.InTouch of a node, and whether the servers do not hear from
// it or have forgotten it.
func (s *Scheduler) inTouch(ctx context.Context, nodeID string) (inTouch uint64, silent bool, err error) {
	node, err := s.cluster.ReadNode(ctx, nodeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	return node.InTouch, node.Down, nil
}
