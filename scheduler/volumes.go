package scheduler

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// UnreachableVolume is the volume of a destroyed engine that could not be deleted yet, with
// its node.
type UnreachableVolume struct {
	*registry.UnreachableVolume
	// NodeName is empty if Nomad has forgotten the node.
	NodeName string
	// Silent: the node does not report to the servers.
	Silent bool
	// Why is the reason why the volume could not be deleted, for an admin; "": unknown.
	Why string
}

// UnreachableVolumes lists the unreachable volumes of destroyed engines, oldest first:
// their node does not respond, or Nomad does not know the volume.
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
			volume.Why = "its node does not respond"
		} else if held, err := s.heldBy(ctx, g.VolumeID); errors.Is(err, cluster.ErrNotFound) {
			volume.Why = "Nomad no longer knows the volume"
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

// ForgetVolume forgets an unreachable volume whose node will not come back. If the node
// comes back after all, the volume has no owner and is removed as an orphan.
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
	entry := audit.Entry{
		ProductID: g.ProductID, UserID: g.UserID, EngineID: g.EngineID, Action: audit.ActionOrphanRemoved, Actor: adminActor(ctx),
		Metadata: map[string]any{"what": []string{"unreachable_volume"}, "node_id": g.NodeID, "volume_id": g.VolumeID},
	}
	return s.auditedChange(ctx, entry, func() error {
		err := s.store.ForgetVolume(ctx, g)
		if errors.Is(err, registry.ErrNotFound) {
			err = errNoVolume
		}
		return err
	}, func(ctx context.Context) (bool, error) {
		left, _, err := s.store.UnreachableVolumes(ctx)
		return !slices.ContainsFunc(left, func(l *registry.UnreachableVolume) bool { return l.EngineID == g.EngineID }), err
	})
}

var errNoVolume = engine.Errorf(engine.VolumeNotFound, "there is no unreachable volume with this engine_id")
