package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-version"
	"github.com/hashicorp/hc-install/product"
)

// The pinned versions: known to build from their modules and to work together.
// tools/*/go.mod says the same; a test compares them.
const (
	NomadVersion  = "1.11.3"
	ConsulVersion = "1.22.3"
	VaultVersion  = "1.21.0"
)

// Binaries are the paths of the three agents.
type Binaries struct {
	Nomad, Consul, Vault string
}

func (b Binaries) complete() bool { return b.Nomad != "" && b.Consul != "" && b.Vault != "" }

// ToolOptions says which binaries will do.
type ToolOptions struct {
	// Pinned takes nothing but the builds from tools/: what is on PATH and
	// HashiCorp's releases are not used. Scale tests need it, since releases are
	// built without Nomad's mock_driver.
	Pinned bool
	// Progress gets a line for every step that takes time; may be nil.
	Progress func(line string)
}

// tool is one agent: which version is pinned, which is the oldest that works.
type tool struct {
	name    string
	version string // pinned
	minimum string // on PATH
	tags    string // build tags of the pinned build
	// cpu is what a build with empty caches costs (measured with Go 1.26).
	cpu     time.Duration
	product product.Product
}

// Minimum: Nomad 1.10 brought dynamic host volumes; Consul and Vault are the
// oldest of the same generation, tested with Nomad 1.10 upstream.
var toolTable = []tool{
	{name: "nomad", version: NomadVersion, minimum: "1.10.0", tags: "ui", cpu: 8 * time.Minute, product: product.Nomad},
	{name: "consul", version: ConsulVersion, minimum: "1.18.0", cpu: 7 * time.Minute, product: product.Consul},
	// Minimal: without the engines and methods of clouds and databases, which nothing here
	// uses. KV, JWT, AppRole and raft are in it.
	{name: "vault", version: VaultVersion, minimum: "1.16.0", tags: "minimal", cpu: 6 * time.Minute, product: product.Vault},
}

// buildName is the file name of the pinned build in the cache.
func (t tool) buildName() string {
	if t.tags != "" {
		return t.name + "_" + t.version + "_" + t.tags
	}
	return t.name + "_" + t.version
}

// releaseName is the file name of the official release in the cache; another
// name than the build's, since a release never stands in for a pinned build.
func (t tool) releaseName() string { return t.name + "_" + t.version + "_release" }

// Tools finds nomad, consul and vault, and fetches or builds what is missing. In
// this order, for each: PATH, if the version is new enough; the cache
// (${XDG_CACHE_HOME:-~/.cache}/orch/bin); HashiCorp's release, where it can be
// reached (ORCH_TOOLS=build skips this); a build of the pinned module in tools/,
// which needs Go and a checkout of this repository and takes 3 to 5 minutes a
// tool on two cores.
//
// Several processes may call it at once: one builds, the others wait. The error
// says what to do about it.
func Tools(ctx context.Context, opts ToolOptions) (Binaries, error) {
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	mode := os.Getenv("ORCH_TOOLS")
	if mode != "" && mode != "build" {
		return Binaries{}, fmt.Errorf("ORCH_TOOLS is %q; leave it empty or set it to %q", mode, "build")
	}
	cache, err := cacheDir()
	if err != nil {
		return Binaries{}, err
	}
	f := finder{opts: opts, cache: cache, releases: !opts.Pinned && mode != "build"}
	var paths [3]string
	for i, t := range toolTable {
		if paths[i], err = f.find(ctx, t); err != nil {
			return Binaries{}, err
		}
	}
	return Binaries{Nomad: paths[0], Consul: paths[1], Vault: paths[2]}, nil
}

type finder struct {
	opts     ToolOptions
	cache    string
	releases bool // cleared after the first time they could not be reached
	fetched  bool // the modules of all builds are asked for
}

func (f *finder) find(ctx context.Context, t tool) (string, error) {
	if !f.opts.Pinned {
		if path, ok := f.onPath(ctx, t); ok {
			return path, nil
		}
	}
	if path, ok := f.cached(t); ok {
		return path, nil
	}
	if err := os.MkdirAll(f.cache, 0o755); err != nil {
		return "", fmt.Errorf("cannot create the tool cache (set XDG_CACHE_HOME to a directory that can be written): %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(f.cache, ".lock-"+t.name), func() {
		f.opts.Progress(t.name + ": another process is getting it, waiting")
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if path, ok := f.cached(t); ok { // the other process got it
		return path, nil
	}
	if f.releases {
		path, err := f.download(ctx, t)
		if err == nil {
			return path, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if errors.Is(err, errUnreachable) {
			f.releases = false
		}
		f.opts.Progress(fmt.Sprintf("%s: no official release (%v), building it", t.name, err))
	}
	return f.build(ctx, t)
}

func (f *finder) onPath(ctx context.Context, t tool) (string, bool) {
	path, err := exec.LookPath(t.name)
	if err != nil {
		return "", false
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", false
	}
	got, err := t.product.GetVersion(ctx, path)
	if err != nil {
		f.opts.Progress(fmt.Sprintf("%s: passing over %s, its version cannot be read: %v", t.name, path, err))
		return "", false
	}
	if got.LessThan(version.Must(version.NewVersion(t.minimum))) {
		f.opts.Progress(fmt.Sprintf("%s: passing over %s, version %s is older than %s", t.name, path, got, t.minimum))
		return "", false
	}
	return path, true
}

func (f *finder) cached(t tool) (string, bool) {
	names := []string{t.buildName()}
	if f.releases {
		names = append(names, t.releaseName())
	}
	for _, name := range names {
		path := filepath.Join(f.cache, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

func cacheDir() (string, error) {
	if base := os.Getenv("XDG_CACHE_HOME"); base != "" {
		return filepath.Join(base, "orch", "bin"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no directory for the tool cache (set HOME or XDG_CACHE_HOME): %w", err)
	}
	return filepath.Join(home, ".cache", "orch", "bin"), nil
}
