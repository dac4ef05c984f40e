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
	// GatewayVersion is of versitygw, the S3 server of tests.
	GatewayVersion = "1.8.0"
)

// Binaries are the paths of the three agents.
type Binaries struct {
	Nomad, Consul, Vault string
}

func (b Binaries) complete() bool { return b.Nomad != "" && b.Consul != "" && b.Vault != "" }

// ToolOptions determines which binaries Tools accepts.
type ToolOptions struct {
	// Pinned accepts only the builds from tools/, not the binaries on PATH or HashiCorp's
	// releases. Scale tests need it, because releases do not contain Nomad's mock_driver.
	Pinned bool
	// Progress gets a line for every step that takes seconds or longer; may be nil.
	Progress func(line string)
}

// tool describes how to get the executable of one agent.
type tool struct {
	name    string
	version string // pinned
	minimum string // the oldest version that is accepted on PATH; empty: none
	command string // the package that is built
	tags    string // build tags of the pinned build
	// cpu is the CPU time of a build with empty caches (measured with Go 1.26).
	cpu     time.Duration
	product product.Product
}

// toolTable lists the agents. Dynamic host volumes need Nomad 1.10. The minimum of Consul and
// Vault is the oldest version that Nomad 1.10 was tested with upstream.
var toolTable = []tool{
	{name: "nomad", command: "github.com/hashicorp/nomad", version: NomadVersion, minimum: "1.10.0", tags: "ui", cpu: 8 * time.Minute, product: product.Nomad},
	{name: "consul", command: "github.com/hashicorp/consul", version: ConsulVersion, minimum: "1.18.0", cpu: 7 * time.Minute, product: product.Consul},
	// The tag leaves out the secrets engines and auth methods of clouds and databases, which
	// are not used here. It keeps KV, JWT, AppRole and Raft.
	{name: "vault", command: "github.com/hashicorp/vault", version: VaultVersion, minimum: "1.16.0", tags: "minimal", cpu: 6 * time.Minute, product: product.Vault},
}

// buildName is the file name of the pinned build in the cache.
func (t tool) buildName() string {
	if t.tags != "" {
		return t.name + "_" + t.version + "_" + t.tags
	}
	return t.name + "_" + t.version
}

// releaseName is the file name of the official release in the cache. It differs from
// buildName, because a release must not be used in place of a pinned build.
func (t tool) releaseName() string { return t.name + "_" + t.version + "_release" }

// Tools finds nomad, consul and vault, and downloads or builds those that are missing. For
// each it tries in this order: PATH, if the version is new enough; the cache
// (${XDG_CACHE_HOME:-~/.cache}/orch/bin); HashiCorp's release, if it is reachable and
// ORCH_TOOLS is not "build"; a build of the pinned module in tools/, which needs Go and a
// checkout of this repository, and takes 3 to 5 minutes per tool on two cores.
//
// Several processes may call it concurrently: one builds, and the others wait. The error
// says what to do.
func Tools(ctx context.Context, opts ToolOptions) (Binaries, error) {
	if opts.Progress == nil {
		opts.Progress = func(string) {}
	}
	mode := os.Getenv("ORCH_TOOLS")
	if mode != "" && mode != "build" {
		return Binaries{}, fmt.Errorf("ORCH_TOOLS is %q; it must be empty or %q", mode, "build")
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
	releases bool // whether to try releases; false once they were unreachable
	fetched  bool // whether the download of all modules has begun
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
		return "", fmt.Errorf("cannot create the tool cache (set XDG_CACHE_HOME to a writable directory): %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(f.cache, ".lock-"+t.name), func() {
		f.opts.Progress(t.name + ": waiting for another process that downloads or builds it")
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
		f.opts.Progress(fmt.Sprintf("%s: cannot get the official release (%v), so it is built", t.name, err))
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
		f.opts.Progress(fmt.Sprintf("%s: ignoring %s, because its version cannot be read: %v", t.name, path, err))
		return "", false
	}
	if got.LessThan(version.Must(version.NewVersion(t.minimum))) {
		f.opts.Progress(fmt.Sprintf("%s: ignoring %s, because its version %s is older than %s", t.name, path, got, t.minimum))
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
