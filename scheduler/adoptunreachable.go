package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// clearUnreachable removes the data of destroyed engines, for a limited time.
func (s *Scheduler) clearUnreachable(ctx context.Context, unreachable []*registry.UnreachableVolume, to string, on map[string]cluster.NodeVolume, done *NodeAdoption) {
	until := time.Now().Add(clearFor)
	var work errgroup.Group
	work.SetLimit(adopters)
	cleared, late, failed := make([]bool, len(unreachable)), make([]bool, len(unreachable)), make([]error, len(unreachable))
	for i, g := range unreachable {
		work.Go(func() error {
			if late[i] = time.Now().After(until); late[i] {
				return nil
			}
			cleared[i], failed[i] = s.clearVolume(ctx, g, to, cmp.Or(pathOn(on, g.VolumeID, g.Volume()), g.VolumePath))
			if failed[i] != nil {
				s.log.Warn("the data of a destroyed engine is still on its node", "engine_id", g.EngineID, "error", failed[i])
			}
			return nil
		})
	}
	_ = work.Wait() // none returns an error
	for i, g := range unreachable {
		switch {
		case failed[i] != nil:
			done.Failed = append(done.Failed, NotAdopted{g.EngineID, whyNot(failed[i])})
		case cleared[i]:
			done.Cleared++
		case late[i]:
			done.Left++
		}
	}
}

// clearVolume removes the data of a destroyed engine whose volume Nomad does not know: it
// registers the directory, deletes the volume with it, and forgets the unreachable volume.
func (s *Scheduler) clearVolume(ctx context.Context, g *registry.UnreachableVolume, to, path string) (bool, error) {
	if path == "" {
		return false, errors.New("its directory is unknown")
	}
	volumes, err := s.brainsOf(ctx, g.EngineID)
	if err != nil {
		return false, err
	}
	row := &engine.Row{EngineID: g.EngineID, VolumeName: g.VolumeName}
	var v *cluster.Volume
	for _, have := range volumes {
		if have.NodeID == to && have.Name != g.Volume() {
			v = have // from an earlier attempt
		}
	}
	for tries := 0; v == nil; tries++ {
		row.NextVolume = row.FreshVolumeName()
		v, err = s.cluster.RegisterVolume(ctx, row.NextVolume, to, path)
		switch {
		case errors.Is(err, cluster.ErrNoDirectory) && to == g.NodeID:
			return true, s.forgetCleared(ctx, g) // somebody has removed it
		case err != nil && tries >= 3: // the first names may be in use
			return false, err
		}
	}
	if err := s.awaitReported(ctx, to, []*adoptee{{volume: v}}); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, scrubTimeout)
	defer cancel()
	left, err := s.removeVolume(limited, v)
	for errors.Is(err, cluster.ErrInUse) && pause.For(limited, volumeLook) {
		left, err = s.removeVolume(limited, v)
	}
	if err == nil && left != "" {
		err = errors.New(left)
	}
	if err != nil {
		return false, err
	}
	if to != g.NodeID {
		if err := s.cluster.ForgetVolume(ctx, g.VolumeID); err != nil && !errors.Is(err, cluster.ErrNotFound) {
			s.log.Info("Nomad keeps the volume of a lost node", "engine_id", g.EngineID, "volume_id", g.VolumeID, "error", err)
		}
	}
	return true, s.forgetCleared(ctx, g)
}

// forgetCleared forgets an unreachable volume whose data no longer exists.
func (s *Scheduler) forgetCleared(ctx context.Context, g *registry.UnreachableVolume) error {
	if err := s.forgetVolume(ctx, g); err != nil && !errors.Is(err, errNoVolume) {
		return fmt.Errorf("forget the unreachable volume: %w", err)
	}
	return nil
}
