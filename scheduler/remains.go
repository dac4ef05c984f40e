package scheduler

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// remains is the volume of an engine that is being destroyed, or was.
type remains struct {
	engineID, nodeID, volumeID, path, name string
}

func remainsOf(g *registry.UnreachableVolume) remains {
	return remains{g.EngineID, g.NodeID, g.VolumeID, g.VolumePath, g.Volume()}
}

const (
	// fingerprintLag is how long a node goes on to report a volume that was deleted:
	// up to 10 s (measured), and some more.
	fingerprintLag = 15 * time.Second
	// scrubTimeout bounds the job that empties a registered volume.
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
		if id, _ := engine.VolumeOf(v.Name); id == engineID {
			own = append(own, v)
		}
	}
	return own, nil
}

// removeVolumes deletes the volumes of an engine with what is in them. left says why
// the engine's memory may still be on its node; "": it is gone.
func (s *Scheduler) removeVolumes(ctx context.Context, r remains) (left string, err error) {
	volumes, err := s.volumesOf(ctx, r.engineID)
	if err != nil {
		return "", err
	}
	deleted := false
	var errs []error
	for _, v := range volumes {
		own := v.ID == r.volumeID
		if !own && r.volumeID != "" && s.nodeSilent(v.NodeID) {
			// Of a registration before, on a node that is lost.
			if err := s.cluster.ForgetVolume(ctx, v.ID); err != nil {
				s.log.Debug("an earlier volume of an engine is left", "engine_id", r.engineID, "volume_id", v.ID, "error", err)
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

// onNode says why the directory of a volume that Nomad does not know may be on its
// node all the same; "": the node says that it is not. A node reports a volume that
// was deleted for a while.
func (s *Scheduler) onNode(ctx context.Context, r remains) (left string, err error) {
	if _, registration := engine.VolumeOf(r.name); registration > 1 {
		// Nomad would have left the directory, whoever had it forget the volume.
		return "Nomad does not know its volume any more, and leaves the directory of such a volume where it is", nil
	}
	for until := time.Now().Add(fingerprintLag); ; {
		has, err := s.nodeHas(ctx, r)
		switch {
		case errors.Is(err, errNodeSilent):
			return "its node is silent", nil
		case err != nil:
			return "", err
		case !has:
			return "", nil
		case time.Now().After(until):
			return "Nomad does not know its volume any more, and its node has it", nil
		}
		if !pause.For(ctx, volumeLook) {
			return "", ctx.Err()
		}
	}
}

// volumeLook is how often a node is asked for its volumes.
const volumeLook = 500 * time.Millisecond

// nodeHas says whether a node reports a volume, by its id or its name.
// errNodeSilent: nobody can say.
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

// removeVolume deletes one volume with what is in it. Of one that was registered,
// Nomad leaves the directory: a job that claims the volume removes it first. left
// says why that could not be done.
func (s *Scheduler) removeVolume(ctx context.Context, v *cluster.Volume) (left string, err error) {
	_, registration := engine.VolumeOf(v.Name)
	if registration < 2 {
		err := s.cluster.DeleteVolume(ctx, v.ID)
		var plugin *cluster.PluginError
		if errors.As(err, &plugin) {
			return "its node could not delete it: " + plugin.Said, nil // a disk that is dead or not mounted
		}
		if !errors.Is(err, cluster.ErrInUse) {
			return "", err
		}
		if held, herr := s.heldBy(ctx, v.ID); herr == nil && held != "" {
			return held, nil
		}
		return "", err
	}
	whole, err := s.cluster.Volume(ctx, v.ID) // a list tells no path
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

// heldBy says which jobs that are not the service's use a volume; "": none do.
func (s *Scheduler) heldBy(ctx context.Context, volumeID string) (string, error) {
	v, err := s.cluster.Volume(ctx, volumeID)
	if err != nil {
		return "", err
	}
	return heldBy(v), nil
}

func heldBy(v *cluster.Volume) string {
	engineID, _ := engine.VolumeOf(v.Name)
	var foreign []string
	for _, job := range v.Jobs {
		if job != engine.JobID(engineID) && job != scrubJob(v) {
			foreign = append(foreign, strconv.Quote(job))
		}
	}
	if len(foreign) == 0 {
		return ""
	}
	return "it is in use by the job " + strings.Join(foreign, ", ") + ", which is not the service's"
}

func scrubJob(v *cluster.Volume) string { return "orch-scrub-" + v.ID }

// brainDirectory is what the directory of a volume looks like that Nomad made: the
// volume's id below the node's directory of host volumes.
var brainDirectory = regexp.MustCompile(`^(/[^/\x00]+)+/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// scrubScript removes the directory in $ORCH_SCRUB, which no "${" may be written in:
// Nomad interpolates it.
const scrubScript = `rm -rf -- "$ORCH_SCRUB" && [ ! -e "$ORCH_SCRUB" ]`

// scrub removes the directory of a registered volume by a job on its node.
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
	// The next attempt is a job of its own.
	_ = s.cluster.Purge(context.WithoutCancel(ctx), scrubJob(v))
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("its node did not run the job in time: %w", err)
	}
	return err
}

// errNoScripts: a node cannot run the service's own scripts.
var errNoScripts = errors.New("the node has no healthy raw_exec driver")

// runsScripts is the node if the service can run scripts there: errNodeSilent,
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
