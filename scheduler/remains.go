package scheduler

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// remains is the volume of an engine that is being, or was, destroyed.
type remains struct {
	engineID, nodeID, volumeID, path, name string
	// others are the ids of volumes of the engine that are removed by themselves.
	others []string
}

func remainsOf(g *registry.UnreachableVolume) remains {
	return remains{engineID: g.EngineID, nodeID: g.NodeID, volumeID: g.VolumeID, path: g.VolumePath, name: g.Volume()}
}

const (
	// fingerprintLag is how long a node may still report a deleted volume: up to 10 s
	// (measured), and a margin.
	fingerprintLag = 15 * time.Second
	// scrubTimeout limits the job that empties a registered volume.
	scrubTimeout = 30 * time.Second
)

// volumesOf lists the volumes of an engine, under all their names.
func (s *Scheduler) volumesOf(ctx context.Context, engineID string) ([]*cluster.Volume, error) {
	alike, err := s.cluster.VolumesLike(ctx, engine.JobID(engineID))
	if err != nil {
		return nil, err
	}
	var own []*cluster.Volume
	for _, v := range alike {
		if name, _ := engine.ParseVolume(v.Name); name.EngineID == engineID {
			own = append(own, v)
		}
	}
	return own, nil
}

// brainsOf lists the volumes of an engine that are, were or become its brain.
func (s *Scheduler) brainsOf(ctx context.Context, engineID string) ([]*cluster.Volume, error) {
	all, err := s.volumesOf(ctx, engineID)
	return slices.DeleteFunc(all, func(v *cluster.Volume) bool {
		name, _ := engine.ParseVolume(v.Name)
		return name.Drill
	}), err
}

// removeVolumes deletes the volumes of an engine with their data. left is why the engine's
// data may still be on its node; "": it is deleted.
func (s *Scheduler) removeVolumes(ctx context.Context, r remains) (left string, err error) {
	volumes, err := s.volumesOf(ctx, r.engineID)
	if err != nil {
		return "", err
	}
	deleted := false
	var errs []error
	for _, v := range volumes {
		if slices.Contains(r.others, v.ID) {
			continue
		}
		own := v.ID == r.volumeID
		if !own && r.volumeID != "" && s.nodeSilent(v.NodeID) {
			// It is from an earlier registration, on a lost node.
			if err := s.cluster.ForgetVolume(ctx, v.ID); err != nil {
				s.log.Debug("cannot remove an earlier volume of an engine", "engine_id", r.engineID, "volume_id", v.ID, "error", err)
			}
			continue
		}
		why, err := s.removeVolume(ctx, v)
		if why != "" {
			left = why
		}
		errs = append(errs, err)
		deleted = deleted || own
	}
	if err := errors.Join(errs...); err != nil || left != "" || deleted || r.volumeID == "" {
		return left, err
	}
	return s.onNode(ctx, r)
}

// onNode returns why the directory of a volume that Nomad does not know may still be on its
// node; "": the node reports that it is not. A node still reports a deleted volume for a
// while.
func (s *Scheduler) onNode(ctx context.Context, r remains) (left string, err error) {
	if name, _ := engine.ParseVolume(r.name); name.Registered {
		// However Nomad lost the volume, it keeps such a directory.
		return "Nomad no longer knows its volume, and keeps the directory of such a volume", nil
	}
	for until := time.Now().Add(fingerprintLag); ; {
		has, err := s.nodeHas(ctx, r)
		switch {
		case errors.Is(err, errNodeSilent):
			return "its node does not respond", nil
		case err != nil:
			return "", err
		case !has:
			return "", nil
		case time.Now().After(until):
			return "Nomad no longer knows its volume, but its node has it", nil
		}
		if !pause.For(ctx, volumeLook) {
			return "", ctx.Err()
		}
	}
}

// volumeLook is the interval at which a node's volumes are read.
const volumeLook = 500 * time.Millisecond

// nodeHas reports whether a node reports a volume, by its id or its name. errNodeSilent:
// that is unknown.
func (s *Scheduler) nodeHas(ctx context.Context, r remains) (bool, error) {
	if s.nodeSilent(r.nodeID) {
		return false, errNodeSilent
	}
	on, err := s.cluster.NodeVolumes(ctx, r.nodeID)
	if errors.Is(err, cluster.ErrNotFound) {
		return false, errNodeSilent
	}
	if err != nil {
		return false, err
	}
	for _, v := range on {
		if v.ID == r.volumeID || v.Name == r.name {
			return true, nil
		}
	}
	return false, nil
}

// removeVolume deletes one volume with its data. Nomad keeps the directory of a registered
// volume, so a job that claims the volume deletes it first. left is why that was not
// possible.
func (s *Scheduler) removeVolume(ctx context.Context, v *cluster.Volume) (left string, err error) {
	if name, _ := engine.ParseVolume(v.Name); !name.Registered {
		err := s.cluster.DeleteVolume(ctx, v.ID)
		var plugin *cluster.PluginError
		if errors.As(err, &plugin) {
			return "its node could not delete it: " + plugin.Said, nil // a disk that is broken or not mounted
		}
		if !errors.Is(err, cluster.ErrInUse) {
			return "", err
		}
		if held, herr := s.heldBy(ctx, v.ID); herr == nil && held != "" {
			return held, nil
		}
		return "", err
	}
	whole, err := s.cluster.Volume(ctx, v.ID) // a list contains no paths
	if errors.Is(err, cluster.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if held := heldBy(whole); held != "" {
		return held, nil
	}
	if err := s.scrub(ctx, whole); err != nil {
		if errors.Is(err, errNodeSilent) || errors.Is(err, cluster.ErrUnavailable) || ctx.Err() != nil {
			return "", err
		}
		return fmt.Sprintf("its directory %s could not be removed: %v", whole.Path, err), nil
	}
	if err := s.cluster.DeleteVolume(ctx, v.ID); err != nil {
		return "", err
	}
	return "", s.cluster.Purge(ctx, scrubJob(whole))
}

// heldBy returns the foreign jobs that use a volume; "": none.
func (s *Scheduler) heldBy(ctx context.Context, volumeID string) (string, error) {
	v, err := s.cluster.Volume(ctx, volumeID)
	if err != nil {
		return "", err
	}
	return heldBy(v), nil
}

func heldBy(v *cluster.Volume) string {
	name, _ := engine.ParseVolume(v.Name)
	var foreign []string
	for _, job := range v.Jobs {
		if job != engine.JobID(name.EngineID) && job != scrubJob(v) && !strings.HasPrefix(job, workersOf(name.EngineID)) {
			foreign = append(foreign, strconv.Quote(job))
		}
	}
	if len(foreign) == 0 {
		return ""
	}
	return "it is in use by the job " + strings.Join(foreign, ", ") + ", which does not belong to the service"
}

func scrubJob(v *cluster.Volume) string { return "orch-scrub-" + v.ID }

// brainDirectory matches the directory of a volume that Nomad created: the volume's id
// below the node's directory of host volumes.
var brainDirectory = regexp.MustCompile(`^(/[^/\x00]+)+/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// scrubScript deletes the directory in $ORCH_SCRUB. It must not contain "${", because Nomad
// interpolates it.
const scrubScript = `rm -rf -- "$ORCH_SCRUB" && [ ! -e "$ORCH_SCRUB" ]`

// scrub deletes the directory of a registered volume by a job on its node.
func (s *Scheduler) scrub(ctx context.Context, v *cluster.Volume) error {
	if !brainDirectory.MatchString(v.Path) || strings.Contains(v.Path, "${") || strings.Contains(v.Path, "/../") {
		return fmt.Errorf("%q is not the directory of a volume", v.Path)
	}
	node, err := s.runsScripts(ctx, v.NodeID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, scrubTimeout)
	defer cancel()
	err = s.cluster.RunBatch(ctx, cluster.Batch{
		Name: scrubJob(v), NodeID: node.ID, NodePool: node.Pool, Script: scrubScript, Env: map[string]string{"ORCH_SCRUB": v.Path}, Volume: v.Name,
	})
	if err == nil {
		return nil
	}
	// The next attempt is a new job.
	_ = s.cluster.Purge(context.WithoutCancel(ctx), scrubJob(v))
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("its node did not run the job in time: %w", err)
	}
	return err
}

// errNoScripts: a node cannot run the service's own scripts.
var errNoScripts = errors.New("the node has no healthy raw_exec driver")

// runsScripts returns the node if the service can run scripts there: errNodeSilent,
// errNoScripts.
func (s *Scheduler) runsScripts(ctx context.Context, nodeID string) (*cluster.Node, error) {
	node, err := s.cluster.ReadNode(ctx, nodeID)
	switch {
	case errors.Is(err, cluster.ErrNotFound) || err == nil && node.Down:
		return nil, errNodeSilent
	case err != nil:
		return nil, err
	case !node.Drivers["raw_exec"]:
		return nil, errNoScripts
	}
	return node, nil
}
