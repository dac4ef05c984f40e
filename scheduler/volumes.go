package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// UnreachableVolume is what is left of a destroyed engine, and of which node.
type UnreachableVolume struct {
	*registry.UnreachableVolume
	// NodeName is empty where Nomad has forgotten the node.
	NodeName string
	// Silent: the servers do not hear from the node.
	Silent bool
	// Why is what keeps the volume there, for an admin to read; "": that is not known.
	Why string
}

// UnreachableVolumes lists what is left of destroyed engines, oldest first: it waits for a silent
// node, or Nomad does not know the volume.
func (s *Scheduler) UnreachableVolumes(ctx context.Context) ([]UnreachableVolume, error) {
	all, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return nil, err
	}
	unreachable := make([]UnreachableVolume, 0, len(all))
	for _, g := range all {
		node, _ := s.cluster.Node(g.NodeID)
		volume := UnreachableVolume{UnreachableVolume: g, NodeName: node.Name, Silent: s.nodeSilent(g.NodeID)}
		if volume.Silent {
			volume.Why = "its node is silent"
		} else if held, err := s.heldBy(ctx, g.VolumeID); errors.Is(err, cluster.ErrNotFound) {
			volume.Why = "Nomad does not know the volume any more"
		} else if err == nil {
			volume.Why = cmp.Or(held, g.Left)
		}
		unreachable = append(unreachable, volume)
	}
	slices.SortFunc(unreachable, func(a, b UnreachableVolume) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.EngineID, b.EngineID)
	})
	return unreachable, nil
}

// ForgetVolume forgets an unreachable volume whose node will not come back. Should it come back after
// all, the volume on it has no owner and is removed as an orphan.
// VOLUME_NOT_FOUND.
func (s *Scheduler) ForgetVolume(ctx context.Context, engineID string) error {
	unreachable, _, err := s.store.UnreachableVolumes(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(unreachable, func(g *registry.UnreachableVolume) bool { return g.EngineID == engineID })
	if i < 0 {
		return errNoVolume
	}
	return s.forgetVolume(ctx, unreachable[i])
}

func (s *Scheduler) forgetVolume(ctx context.Context, g *registry.UnreachableVolume) error {
	began := time.Now()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), ProductID: g.ProductID, UserID: g.UserID, EngineID: g.EngineID,
		Action: audit.ActionOrphanRemoved, Actor: actorAdmin, RequestID: RequestID(ctx),
		Metadata: map[string]any{"what": []string{"unreachable_volume"}, "node_id": g.NodeID, "volume_id": g.VolumeID},
	})
	if err != nil {
		return err
	}
	err = s.store.ForgetVolume(ctx, g)
	if errors.Is(err, registry.ErrNotFound) {
		err = errNoVolume
	}
	s.abandon(ctx, id, began, err)
	return err
}

var errNoVolume = engine.Errorf(engine.VolumeNotFound, "there is no unreachable volume of that engine_id")
