package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// deleteFormer deletes a volume of an engine that is not its brain.
func (s *Scheduler) deleteFormer(ctx context.Context, row *engine.Row, p engine.Place) error {
	if p.VolumeID != "" && p.VolumeID == row.VolumeID {
		return fmt.Errorf("scheduler: volume %s is the engine's brain", p.VolumeID)
	}
	// The row may be from a backup of the registry.
	held, err := s.cluster.Variable(ctx, row.JobID())
	if err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	if err == nil && held.Witness != nil && p.VolumeID != "" && held.Witness.VolumeID == p.VolumeID {
		return fmt.Errorf("scheduler: the engine was last started with volume %s", p.VolumeID)
	}
	volumes, err := s.volumesOf(ctx, row.EngineID)
	if err != nil {
		return err
	}
	name := cmp.Or(p.VolumeName, row.JobID())
	for _, v := range volumes {
		if v.Name != name || v.ID == row.VolumeID || p.VolumeID != "" && v.ID != p.VolumeID {
			continue
		}
		left, err := s.removeVolume(ctx, v)
		if err != nil {
			return err
		}
		if left != "" {
			return fmt.Errorf("scheduler: volume %s of the engine cannot be deleted yet: %s", v.ID, left)
		}
	}
	return nil
}

// sweepDiscarded deletes the former volumes of engines whose nodes are back.
func (s *Scheduler) sweepDiscarded(ctx context.Context) {
	for _, row := range s.mirror.All() {
		if len(row.Discarded) == 0 || row.Op != nil {
			continue
		}
		now, changed := row.Clone(), false
		now.Discarded = nil
		for _, d := range row.Discarded {
			gone := false
			if !s.nodeSilent(d.NodeID) {
				// Nomad refuses it while the process there has not ended.
				err := s.deleteFormer(ctx, row, d.Place)
				if gone = err == nil; !gone {
					s.log.Debug("cannot delete a former volume of an engine yet", "engine_id", row.EngineID, "volume_id", d.VolumeID, "error", err)
				}
			}
			if changed = changed || gone; !gone {
				now.Discarded = append(now.Discarded, d)
			}
		}
		if !changed {
			continue
		}
		if err := s.store.Update(ctx, now); err != nil && !errors.Is(err, registry.ErrConflict) {
			s.log.Debug("cannot record that a former volume was deleted; retrying", "engine_id", row.EngineID, "error", err)
		}
	}
}
