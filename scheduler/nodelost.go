package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// lostEvery is the interval at which the leader looks for nodes that do not respond.
	lostEvery = 5 * time.Second
	// rescuesMost limits how many engines come up elsewhere at once, so that the nodes that are
	// left can boot them in time.
	rescuesMost = 8
)

// lostNodes restores engines whose nodes do not respond, if their products' policies ask for
// that, on the leader.
type lostNodes struct {
	s *Scheduler
	// since is when this replica, as the leader, first missed a node, by its id. A new leader
	// counts anew, so no clock of another replica is trusted.
	since map[string]time.Time
	// next is when an engine whose rescue failed is tried again, by its id.
	next map[string]time.Time
}

func newLostNodes(s *Scheduler) *lostNodes {
	return &lostNodes{s: s, since: map[string]time.Time{}, next: map[string]time.Time{}}
}

func (l *lostNodes) run(ctx context.Context) {
	for pause.For(ctx, lostEvery) {
		if !l.s.informed() {
			clear(l.since)
			continue
		}
		if err := l.once(ctx); err != nil && ctx.Err() == nil {
			l.s.log.Debug("cannot look for engines of lost nodes; retrying", "error", err)
		}
	}
}

func (l *lostNodes) once(ctx context.Context) error {
	rows, now := l.s.mirror.All(), time.Now()
	silent := map[string]bool{}
	under := 0
	for _, row := range rows {
		if row.NodeID != "" && l.s.nodeSilent(row.NodeID) {
			silent[row.NodeID] = true
		}
		if row.Op != nil && row.Op.Kind == engine.OpRestore {
			under++
		}
	}
	for id := range l.since {
		if !silent[id] {
			delete(l.since, id)
		}
	}
	if len(silent) == 0 {
		return nil
	}
	for id := range silent {
		if l.since[id].IsZero() {
			l.since[id] = now
		}
	}
	after, err := l.patience(ctx)
	if err != nil || len(after) == 0 {
		return err
	}
	for _, row := range rows {
		wait, asked := after[row.ProductID]
		if !asked || !silent[row.NodeID] || now.Sub(l.since[row.NodeID]) < wait || !mayRescue(row) || now.Before(l.next[row.EngineID]) {
			continue
		}
		if under++; under > rescuesMost {
			break
		}
		l.next[row.EngineID] = now.Add(wait)
		l.rescue(ctx, row)
	}
	return nil
}

// patience returns for how long a node may be lost, for each product whose engines are then
// restored elsewhere.
func (l *lostNodes) patience(ctx context.Context) (map[string]time.Duration, error) {
	products, _, err := l.s.store.Products(ctx)
	if err != nil {
		return nil, err
	}
	after := map[string]time.Duration{}
	for _, p := range products {
		if p.Policy.OnNodeLost != engine.NodeLostRestore {
			continue
		}
		seconds := engine.DefaultNodeLostAfter
		if p.Policy.NodeLostAfterS != nil {
			seconds = *p.Policy.NodeLostAfterS
		}
		after[p.ProductID] = time.Duration(seconds) * time.Second
	}
	return after, nil
}

// mayRescue reports whether an engine of a lost node is to run, and has a snapshot.
func mayRescue(row *engine.Row) bool {
	return row.Op == nil && row.State == engine.Failed && row.Desired == engine.Running && row.Snapshot != nil && row.Snapshot.ID != ""
}

// rescue begins to restore an engine of a lost node from its newest snapshot.
func (l *lostNodes) rescue(ctx context.Context, row *engine.Row) {
	s := l.s
	m, err := s.choice(ctx, row, row.Snapshot.ID)
	if errors.Is(err, errNoSnapshot) { // somebody has deleted it
		m, err = s.newest(ctx, row)
	}
	if err == nil {
		_, err = s.propose(ctx, row, proposal{
			kind: engine.OpRestore, action: audit.ActionRestore, actor: actorSystem, backends: []string{"nomad", "vault"},
			details: map[string]any{"why": engine.ReasonNodeDown, "snapshot_id": m.SnapshotID},
			prepare: func(row *engine.Row) error {
				err := s.prepareRestore(row, m)
				if err == nil {
					row.Op.Restoring.Rescue = true
				}
				return err
			},
		})
	}
	if err != nil {
		s.log.Warn("cannot restore an engine of a lost node; retrying later", "engine_id", row.EngineID, "node_id", row.NodeID, "error", err)
		return
	}
	s.log.Warn("an engine's node does not respond: restoring the engine on another one", "engine_id", row.EngineID, "node_id", row.NodeID, "snapshot_at", m.CreatedAt)
}
