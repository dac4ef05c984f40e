package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// strayDrills are the volumes of drills that no operation uses, and when each was first seen.
type strayDrills map[string]time.Time

// sweep removes volumes of drills that no row knows: of a replica that was paused, of an
// engine that is gone, or of a registry that was restored. What is in such a volume is a copy
// of a snapshot, and it is decrypted.
func (st strayDrills) sweep(ctx context.Context, s *Scheduler) error {
	volumes, err := s.cluster.VolumesLike(ctx, engine.JobPrefix)
	if err != nil {
		return err
	}
	rows := map[string]*engine.Row{}
	for _, row := range s.mirror.All() {
		rows[row.EngineID] = row
	}
	there := map[string]bool{}
	for _, v := range volumes {
		name, _ := engine.ParseVolume(v.Name)
		if !isStrayDrill(v, rows[name.EngineID], s.guard.ID()) || s.nodeSilent(v.NodeID) {
			continue
		}
		there[v.ID] = true
		switch since, seen := st[v.ID]; {
		case !seen:
			st[v.ID] = time.Now()
		case time.Since(since) > straysKept:
			s.log.Info("removing the volume of a drill that no operation uses", "volume", v.Name, "volume_id", v.ID)
			if _, err := s.removeVolume(ctx, v); err != nil {
				s.log.Debug("cannot remove the volume of a drill; retrying", "volume_id", v.ID, "error", err)
			}
		}
	}
	for id := range st {
		if !there[id] {
			delete(st, id)
		}
	}
	return nil
}

// isStrayDrill reports whether a volume is of a drill of this deployment, and in no row.
func isStrayDrill(v *cluster.Volume, row *engine.Row, deploymentID string) bool {
	name, _ := engine.ParseVolume(v.Name)
	if !name.Drill || !engine.MadeBy(name.EngineID, deploymentID) {
		return false
	}
	if row == nil {
		return true
	}
	return row.Op == nil && !row.HasLeft(v.ID) && v.ID != row.VolumeID
}
