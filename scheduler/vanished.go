package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// vanishedGrace is how long a process can live whose allocation Nomad has forgotten:
// its node learns of it with its next list of allocations, and then ends it.
const vanishedGrace = killGrace + killMargin

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
func (s *Scheduler) brainKnown(ctx context.Context, row *registry.Engine) (bool, error) {
	_, err := s.cluster.Volume(ctx, row.VolumeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// lastProcess is the allocation of the process that a row knows of; "": it knows of
// none.
func lastProcess(row *registry.Engine) string {
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
	if id := lastProcess(row); id != "" && kind != registry.OpProvision {
		for _, a := range allocs {
			if a.ID == id {
				return nil
			}
		}
		return errVanished
	}
	mayRun := kind == registry.OpStart || row.Op.From == registry.Failed || row.Op.From == registry.Running
	if len(allocs) > 0 || row.VolumeID == "" || kind == registry.OpDestroy || !mayRun {
		return nil
	}
	known, err := o.s.brainKnown(ctx, row)
	if err == nil && !known {
		err = o.unconfirmed(ctx, errStateLost)
	}
	return err
}

// noteVanished writes into the row that its process has vanished, so that every
// owner of the operation counts from the same moment.
func (o *operation) noteVanished(ctx context.Context) error {
	if o.row.Vanished != nil {
		return nil
	}
	o.row.Vanished = &registry.Vanished{AllocID: lastProcess(o.row), NodeID: o.row.NodeID, Since: time.Now().UTC()}
	o.log.Warn("Nomad does not know the engine's allocation any more", "allocation", o.row.Vanished.AllocID)
	return o.save(ctx)
}

// vanishedGone waits until a process whose allocation Nomad has forgotten is surely
// gone: Nomad still knows the volume, so it was the job alone that was purged; and
// the node has been in touch with the servers for as long as a process may take to
// end. Destroying does not wait for what cannot be confirmed: the volume becomes a
// grave.
func (o *operation) vanishedGone(ctx context.Context) error {
	err := o.awaitVanished(ctx)
	if o.row.Op.Kind == registry.OpDestroy && (errors.Is(err, errNodeSilent) || errors.Is(err, errStateLost)) {
		return nil
	}
	if err != nil {
		return o.unconfirmed(ctx, err)
	}
	o.log.Info("a process that Nomad had forgotten has had the time to end", "allocation", o.row.Vanished.AllocID)
	o.row.Vanished, o.row.AllocID = nil, ""
	return nil
}

func (o *operation) awaitVanished(ctx context.Context) error {
	known, err := o.s.brainKnown(ctx, o.row)
	if err == nil && !known {
		err = errStateLost
	}
	for err == nil {
		node, rerr := o.s.cluster.ReadNode(ctx, o.row.NodeID)
		switch {
		case errors.Is(rerr, cluster.ErrNotFound) || rerr == nil && node.Down:
			return errNodeSilent
		case rerr != nil:
			return rerr
		}
		since := o.row.Vanished.Since
		if node.StatusSince.After(since) {
			since = node.StatusSince // it was silent meanwhile
		}
		left := time.Until(since.Add(vanishedGrace))
		if left <= 0 {
			return nil
		}
		if !pause(ctx, min(left, killMargin)) {
			return ctx.Err()
		}
	}
	return err
}
