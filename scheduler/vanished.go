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

// vanishedGrace is how long a process can live after Nomad has forgotten its allocation:
// its node learns of it with its next list of allocations, and then ends the process.
const vanishedGrace = killGrace + killMargin

// vanishedLook is the interval of checking the node of such a process: less than the
// shortest time in which the servers give up a node and have it back (10 s).
const vanishedLook = 2 * time.Second

var (
	// errVanished: the row has a process whose allocation Nomad does not know.
	errVanished = errors.New("nomad no longer knows the engine's allocation")
	// errStateLost: Nomad does not know the engine's volume either, so nothing that it
	// reports about the engine's processes is a proof.
	errStateLost = errors.New("nomad no longer knows the engine's volume")
)

// whatToDo is the end of messages about an engine whose volume Nomad does not know.
const whatToDo = "Nomad no longer knows the engine's volume, because its servers or its node lost their state (see docs/operations.md, orch node adopt)"

// brainKnown reports whether Nomad knows the volume of a row.
func (s *Scheduler) brainKnown(ctx context.Context, row *engine.Row) (bool, error) {
	_, err := s.cluster.Volume(ctx, row.VolumeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// lastProcess returns the allocation of the process in a row; "": there is none.
func lastProcess(row *engine.Row) string {
	if row.Frozen != nil {
		return row.Frozen.AllocID
	}
	return row.AllocID
}

// missed returns what it means for an operation that no process of its engine is left among
// the allocations that Nomad knows: nil if the row's process is among them, otherwise
// errVanished. If Nomad knows no allocation at all, it must know the volume (errStateLost).
func (o *work) missed(ctx context.Context, allocs []cluster.Alloc) error {
	kind, row := o.Row.Op.Kind, o.Row
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

// outlastVanished waits, after errVanished, until a process whose allocation Nomad has
// forgotten has certainly ended. The beginning of that time is in the row, so that every
// owner of the operation uses the same one.
func (o *work) outlastVanished(ctx context.Context) error {
	if o.Row.Vanished == nil {
		o.Row.Vanished = &engine.Vanished{AllocID: lastProcess(o.Row), NodeID: o.Row.NodeID, Since: time.Now().UTC()}
		o.Log.Warn("Nomad no longer knows the engine's allocation", "allocation", o.Row.Vanished.AllocID)
		if err := o.Save(ctx); err != nil {
			return err
		}
	}
	for {
		err := o.WhileOwned(ctx, o.vanishedGone)
		switch {
		case err == nil && len(o.Row.Unproven) > 0:
			return o.Save(ctx) // so that nobody waits for it again
		case !errors.Is(err, errCountAnew):
			return err
		}
		if err := o.Save(ctx); err != nil {
			return err
		}
	}
}

// errCountAnew: the beginning of the time for a vanished process has changed.
var errCountAnew = errors.New("scheduler: the node was disconnected")

// vanishedGone waits for the end of that time. Nomad must still know the volume, so that
// only the job was purged, and the node must have been connected to the servers for as long
// as a process may take to end. A destroy does not wait for what cannot be confirmed: it
// lists the volume as unreachable.
func (o *work) vanishedGone(ctx context.Context) error {
	err := o.awaitVanished(ctx)
	if o.Row.Op.Kind == engine.OpDestroy && (errors.Is(err, errNodeSilent) || errors.Is(err, errStateLost)) {
		return nil
	}
	if err != nil {
		return o.unconfirmed(ctx, err)
	}
	o.Log.Info("a process that Nomad had forgotten has had enough time to end", "allocation", o.Row.Vanished.AllocID)
	if o.s.opts.Job.Driver == jobs.Docker && !slices.Contains(o.Row.Unproven, o.Row.Vanished.AllocID) {
		// The docker daemon may have been down when the container was to end.
		o.Row.Unproven = append(o.Row.Unproven, o.Row.Vanished.AllocID)
	}
	o.Row.Vanished, o.Row.AllocID = nil, ""
	return nil
}

func (o *work) awaitVanished(ctx context.Context) error {
	known, err := o.s.brainKnown(ctx, o.Row)
	if err == nil && !known {
		err = errStateLost
	}
	if err != nil {
		return err
	}
	for v := o.Row.Vanished; ; {
		inTouch, silent, err := o.s.inTouch(ctx, o.Row.NodeID)
		if err != nil {
			return err
		}
		if inTouch != v.InTouch || time.Now().Before(v.Since) { // or it was recorded by a fast clock
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

// inTouch returns cluster.Node.InTouch of a node, and whether the node does not report to
// the servers, or they have forgotten it.
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
