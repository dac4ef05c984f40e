package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-version"
	"github.com/hashicorp/hc-install/releases"
)

const (
	// reachTimeout limits the check whether HashiCorp's releases are reachable, so that
	// machines without internet access do not wait for long.
	reachTimeout    = 5 * time.Second
	downloadTimeout = 5 * time.Minute
)

var errUnreachable = errors.New("HashiCorp's releases cannot be reached")

// download fetches the official release of t into the cache, and returns its path.
// hc-install checks the signature and the checksum. The error is errUnreachable if the
// list of releases cannot be read.
func (f *finder) download(ctx context.Context, t tool) (string, error) {
	list := releases.Versions{
		Product:     t.product,
		Constraints: version.MustConstraints(version.NewConstraint("= " + t.version)),
		ListTimeout: reachTimeout,
	}
	found, err := list.List(ctx)
	if err != nil {
		return "", errUnreachable
	}
	if len(found) == 0 {
		return "", fmt.Errorf("there is no release %s", t.version)
	}
	tmp, err := os.MkdirTemp(f.cache, ".tmp-"+t.name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	f.opts.Progress(fmt.Sprintf("%s: downloading the official release %s", t.name, t.version))
	release := releases.ExactVersion{
		Product:    t.product,
		Version:    version.Must(version.NewVersion(t.version)),
		InstallDir: tmp,
		Timeout:    downloadTimeout,
	}
	path, err := release.Install(ctx)
	if err != nil {
		return "", fmt.Errorf("download failed: %w", err)
	}
	target := filepath.Join(f.cache, t.releaseName())
	if err := os.Rename(path, target); err != nil {
		return "", fmt.Errorf("putting %s into the cache: %w", t.name, err)
	}
	return target, nil
}
