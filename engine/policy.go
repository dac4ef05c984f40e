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

// Policy is what a product may do (SPEC section 3). An absent field (nil or
// empty) means no limit or the service's default; a limit of 0 allows nothing.
type Policy struct {
	MaxEngines   *int   `json:"max_engines,omitempty"`
	RateLimitRPM *int   `json:"rate_limit_rpm,omitempty"`
	EngineImage  string `json:"engine_image,omitempty"`
	IdleTimeoutS *int   `json:"idle_timeout_s,omitempty"`
	CPUMHz       *int   `json:"cpu_mhz,omitempty"`
	MemoryMB     *int   `json:"memory_mb,omitempty"`
	// BrainMB is how much fits into an engine's volume, in MiB.
	BrainMB       *int     `json:"brain_mb,omitempty"`
	AllowedImages []string `json:"allowed_images,omitempty"`
	WarmPool      *int     `json:"warm_pool,omitempty"`
	NodePool      string   `json:"node_pool,omitempty"`
	SleepMode     string   `json:"sleep_mode,omitempty"`
	// KeyProofPath is where the product's engines prove their keys (SPEC section 7).
	KeyProofPath string `json:"key_proof_path,omitempty"`
}

// The values of Policy.SleepMode; empty is SleepStop.
const (
	SleepStop  = "stop"
	SleepPause = "pause" // frozen in memory, where the driver can
)

var nodePoolPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)

// minMemoryMB is the least memory that Nomad accepts for a task
// (nomad/structs: MinResources).
const minMemoryMB = 10

// Check returns everything that is wrong with a policy, joined, in words for
// the caller.
func (p *Policy) Check() error {
	var errs []error
	atLeast := func(name string, v *int, min int) {
		if v != nil && *v < min {
			errs = append(errs, fmt.Errorf("policy.%s is %d; it must be %d or more", name, *v, min))
		}
	}
	atLeast("max_engines", p.MaxEngines, 0)
	atLeast("rate_limit_rpm", p.RateLimitRPM, 0)
	atLeast("idle_timeout_s", p.IdleTimeoutS, 0)
	atLeast("cpu_mhz", p.CPUMHz, 1)
	atLeast("memory_mb", p.MemoryMB, minMemoryMB)
	atLeast("brain_mb", p.BrainMB, 1)
	atLeast("warm_pool", p.WarmPool, 0)
	for i, glob := range p.AllowedImages {
		if !isGlob(glob) || strings.ContainsFunc(glob, unicode.IsControl) {
			errs = append(errs, fmt.Errorf("policy.allowed_images[%d] is not a glob pattern", i))
		}
	}
	if p.NodePool != "" && !nodePoolPattern.MatchString(p.NodePool) {
		errs = append(errs, errors.New("policy.node_pool is not a node pool name"))
	}
	if p.SleepMode != "" && p.SleepMode != SleepStop && p.SleepMode != SleepPause {
		errs = append(errs, errors.New(`policy.sleep_mode must be "stop" or "pause"`))
	}
	if p.KeyProofPath != "" {
		if err := CheckKeyProofPath(p.KeyProofPath); err != nil {
			errs = append(errs, fmt.Errorf("policy.key_proof_path %w", err))
		}
	}
	return errors.Join(errs...)
}

// anything is the part of a glob that stands for any characters, slashes too; alone, "*"
// is the same.
const anything = "**"

func isGlob(glob string) bool {
	for part := range strings.SplitSeq(glob, anything) {
		if _, err := path.Match(part, ""); err != nil {
			return false
		}
	}
	return glob != ""
}

// AllowsImage says whether an image is one that the policy's AllowedImages name: globs as
// path.Match has them, whose "*" stops at a slash, and "**", which does not.
func (p *Policy) AllowsImage(image string) bool {
	return slices.ContainsFunc(p.AllowedImages, func(glob string) bool { return matches(glob, image) })
}

func matches(glob, image string) bool {
	if glob == "*" {
		return true
	}
	ends := make([]bool, len(image)+1) // where what was matched up to now may end
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

// CheckKeyProofPath says what is wrong with the path on which engines prove their
// keys: it is the path of a URL, of 1 to 256 bytes, and not the open /health.
func CheckKeyProofPath(p string) error {
	if len(p) > 256 || strings.HasPrefix(p, "//") || !proofPathPattern.MatchString(p) {
		return errors.New("must be the path of a URL: it begins with one slash and has at most 256 bytes")
	}
	if parsed, err := url.Parse(p); err != nil || path.Clean(parsed.Path) == "/health" {
		return errors.New("must be a path of the engine that needs a key; /health needs none")
	}
	return nil
}
