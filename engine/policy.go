package engine

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Policy contains a product's limits and settings. An absent field (nil or empty) means no
// limit or the service's default; a limit of 0 allows nothing.
type Policy struct {
	MaxEngines   *int   `json:"max_engines,omitempty"`
	RateLimitRPM *int   `json:"rate_limit_rpm,omitempty"`
	EngineImage  string `json:"engine_image,omitempty"`
	IdleTimeoutS *int   `json:"idle_timeout_s,omitempty"`
	CPUMHz       *int   `json:"cpu_mhz,omitempty"`
	MemoryMB     *int   `json:"memory_mb,omitempty"`
	// BrainMB is the limit of an engine's volume, in MiB.
	BrainMB       *int     `json:"brain_mb,omitempty"`
	AllowedImages []string `json:"allowed_images,omitempty"`
	WarmPool      *int     `json:"warm_pool,omitempty"`
	NodePool      string   `json:"node_pool,omitempty"`
	SleepMode     string   `json:"sleep_mode,omitempty"`
	// Isolation is what separates the product's containers from their node; empty: the
	// docker daemon's default runtime.
	Isolation string `json:"isolation,omitempty"`
	// KeyProofPath is the path on which the product's engines prove their keys
	// (docs/tutorial-engine.md).
	KeyProofPath string `json:"key_proof_path,omitempty"`
	// SnapshotIntervalS is the time between two snapshots of an engine that the service takes
	// by itself, in seconds; absent or 0: it takes none.
	SnapshotIntervalS *int `json:"snapshot_interval_s,omitempty"`
	// SnapshotKeep is how many of the snapshots of an engine that the service took by itself
	// are kept; absent: DefaultSnapshotKeep.
	SnapshotKeep *int `json:"snapshot_keep,omitempty"`
	// OnNodeLost is what happens to an engine whose node does not respond for NodeLostAfterS
	// seconds (absent: DefaultNodeLostAfter); empty: NodeLostWait.
	OnNodeLost     string `json:"on_node_lost,omitempty"`
	NodeLostAfterS *int   `json:"node_lost_after_s,omitempty"`
}

// Of snapshots (SPEC, section 10).
const (
	// MinSnapshotInterval is the minimum of Policy.SnapshotIntervalS, in seconds.
	MinSnapshotInterval = 300
	// DefaultSnapshotKeep is how many snapshots of an engine are kept without
	// Policy.SnapshotKeep.
	DefaultSnapshotKeep = 7
	// DefaultNodeLostAfter is in seconds. MinNodeLostAfter is longer than the restart of a
	// node's agent takes.
	DefaultNodeLostAfter = 600
	MinNodeLostAfter     = 60
)

// Values of Policy.OnNodeLost.
const (
	NodeLostWait    = "wait"
	NodeLostRestore = "restore" // the engine comes up on another node, with its newest snapshot
)

// Values of Policy.SleepMode; empty means SleepStop.
const (
	SleepStop  = "stop"
	SleepPause = "pause" // frozen in memory, if the driver supports it
)

// Values of Policy.Isolation (jobs.Runtime returns the docker runtime of each).
const (
	IsolationRunc   = "runc"   // namespaces and cgroups of the node's kernel
	IsolationGVisor = "gvisor" // a kernel in user space between the engine and the node's kernel
	IsolationKata   = "kata"   // a virtual machine
)

var nodePoolPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)

// minMemoryMB is Nomad's minimum memory for a task, in MiB (nomad/structs: MinResources).
const minMemoryMB = 10

// Check returns all mistakes in a policy, joined, with messages for the caller.
func (p *Policy) Check() error {
	var errs []error
	atLeast := func(name string, v *int, min int) {
		if v != nil && *v < min {
			errs = append(errs, fmt.Errorf("policy.%s is %d; it must be at least %d", name, *v, min))
		}
	}
	atLeast("max_engines", p.MaxEngines, 0)
	atLeast("rate_limit_rpm", p.RateLimitRPM, 0)
	atLeast("idle_timeout_s", p.IdleTimeoutS, 0)
	atLeast("cpu_mhz", p.CPUMHz, 1)
	atLeast("memory_mb", p.MemoryMB, minMemoryMB)
	atLeast("brain_mb", p.BrainMB, 1)
	atLeast("warm_pool", p.WarmPool, 0)
	if v := p.SnapshotIntervalS; v != nil && *v != 0 && *v < MinSnapshotInterval {
		errs = append(errs, fmt.Errorf("policy.snapshot_interval_s is %d; it must be 0 (no snapshots) or at least %d", *v, MinSnapshotInterval))
	}
	atLeast("snapshot_keep", p.SnapshotKeep, 1)
	atLeast("node_lost_after_s", p.NodeLostAfterS, MinNodeLostAfter)
	if p.OnNodeLost != "" && p.OnNodeLost != NodeLostWait && p.OnNodeLost != NodeLostRestore {
		errs = append(errs, errors.New(`policy.on_node_lost must be "wait" or "restore"`))
	}
	for i, glob := range p.AllowedImages {
		if !isGlob(glob) || strings.ContainsFunc(glob, unicode.IsControl) {
			errs = append(errs, fmt.Errorf("policy.allowed_images[%d] is not a glob pattern", i))
		}
	}
	if p.NodePool != "" && !nodePoolPattern.MatchString(p.NodePool) {
		errs = append(errs, errors.New("policy.node_pool is not a valid name of a node pool"))
	}
	if p.SleepMode != "" && p.SleepMode != SleepStop && p.SleepMode != SleepPause {
		errs = append(errs, errors.New(`policy.sleep_mode must be "stop" or "pause"`))
	}
	switch p.Isolation {
	case "", IsolationRunc, IsolationGVisor, IsolationKata:
	default:
		errs = append(errs, errors.New(`policy.isolation must be "runc", "gvisor" or "kata"`))
	}
	if p.KeyProofPath != "" {
		if err := CheckKeyProofPath(p.KeyProofPath); err != nil {
			errs = append(errs, fmt.Errorf("policy.key_proof_path %w", err))
		}
	}
	return errors.Join(errs...)
}

// anything is the part of a glob that matches any characters, including slashes. A glob
// that is only "*" does the same.
const anything = "**"

func isGlob(glob string) bool {
	for part := range strings.SplitSeq(glob, anything) {
		if _, err := path.Match(part, ""); err != nil {
			return false
		}
	}
	return glob != ""
}

// AllowsImage reports whether the policy's AllowedImages contain an image. They are globs
// as in path.Match, whose "*" does not match a slash, and additionally "**", which does.
func (p *Policy) AllowsImage(image string) bool {
	return slices.ContainsFunc(p.AllowedImages, func(glob string) bool { return matches(glob, image) })
}

func matches(glob, image string) bool {
	if glob == "*" {
		return true
	}
	ends := make([]bool, len(image)+1) // where the part matched so far may end
	ends[0] = true
	for i, part := range strings.Split(glob, anything) {
		next, from := make([]bool, len(image)+1), false
		for begin := range ends {
			if from = ends[begin] || from && i > 0; !from {
				continue
			}
			for end := begin; end <= len(image); end++ {
				ok, _ := path.Match(part, image[begin:end])
				next[end] = next[end] || ok
			}
		}
		ends = next
	}
	return ends[len(image)]
}

var proofPathPattern = regexp.MustCompile(`^(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)+(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?$`)

// CheckKeyProofPath returns an error unless a path is usable for the key proof: the path of
// a URL, of 1 to 256 bytes, and not /health, which is open.
func CheckKeyProofPath(p string) error {
	if len(p) > 256 || strings.HasPrefix(p, "//") || !proofPathPattern.MatchString(p) {
		return errors.New("must be the path of a URL, with one slash at its beginning and at most 256 bytes")
	}
	if parsed, err := url.Parse(p); err != nil || path.Clean(parsed.Path) == "/health" {
		return errors.New("must be a path of the engine that requires the key; /health does not")
	}
	return nil
}
