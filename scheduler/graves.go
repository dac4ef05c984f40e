package scheduler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
)

// Grave is what is left of a destroyed engine, and of which node.
type Grave struct {
	*registry.Grave
	// NodeName is empty where Nomad has forgotten the node.
	NodeName string
	// Silent: the servers do not hear from the node.
	Silent bool
	// Why is what keeps the volume there, for an admin to read; "": that is not known.
	Why string
}

// Graves lists what is left of destroyed engines, oldest first: it waits for a silent
// node, or Nomad does not know the volume.
func (s *Scheduler) Graves(ctx context.Context) ([]Grave, error) {
	all, _, err := s.store.Graves(ctx)
	if err != nil {
		return nil, err
	}
	graves := make([]Grave, 0, len(all))
	for _, g := range all {
		node, _ := s.cluster.Node(g.NodeID)
		grave := Grave{Grave: g, NodeName: node.Name, Silent: s.nodeSilent(g.NodeID)}
		if grave.Silent {
			grave.Why = "its node is silent"
		} else if held, err := s.heldBy(ctx, g.VolumeID); errors.Is(err, cluster.ErrNotFound) {
			grave.Why = "Nomad does not know the volume any more"
		} else {
			grave.Why = held // if Nomad answers
		}
		graves = append(graves, grave)
	}
	slices.SortFunc(graves, func(a, b Grave) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.EngineID, b.EngineID)
	})
	return graves, nil
}

// Bury forgets a grave whose node will not come back. Should it come back after
// all, the volume on it has no owner and is removed as an orphan.
// GRAVE_NOT_FOUND.
func (s *Scheduler) Bury(ctx context.Context, engineID string) error {
	graves, _, err := s.store.Graves(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(graves, func(g *registry.Grave) bool { return g.EngineID == engineID })
	if i < 0 {
		return errNoGrave
	}
	return s.bury(ctx, graves[i])
}

func (s *Scheduler) bury(ctx context.Context, g *registry.Grave) error {
	began := time.Now()
	id, err := s.audit.Begin(ctx, audit.Entry{
		Timestamp: began.UTC(), ProductID: g.ProductID, UserID: g.UserID, EngineID: g.EngineID,
		Action: audit.ActionOrphanRemoved, Actor: actorAdmin, RequestID: RequestID(ctx),
		Metadata: map[string]any{"what": []string{"grave"}, "node_id": g.NodeID, "volume_id": g.VolumeID},
	})
	if err != nil {
		return err
	}
	err = s.store.Bury(ctx, g)
	if errors.Is(err, registry.ErrNotFound) {
		err = errNoGrave
	}
	s.abandon(ctx, id, began, err)
	return err
}

var errNoGrave = fail(GraveNotFound, "there is no grave of that engine_id")
