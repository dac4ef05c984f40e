package devstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// VaultProviderVersion is the version of HashiCorp's Terraform provider for Vault that is
// built from tools/terraform-provider-vault: the newest that the Go module proxy has. Those
// for Nomad and Consul are not there in any version.
const VaultProviderVersion = "3.3.1"

// vaultProvider is built as the agents are.
var vaultProvider = tool{name: "terraform-provider-vault", version: VaultProviderVersion, minimum: VaultProviderVersion, cpu: 6 * time.Minute}

// VaultProvider builds HashiCorp's Terraform provider for Vault, with which the Terraform
// modules in deploy/terraform are tested, unless it is in the cache. It returns its path.
// progress gets a line for every step that takes seconds or longer; it may be nil.
func VaultProvider(ctx context.Context, progress func(string)) (string, error) {
	if progress == nil {
		progress = func(string) {}
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("cannot create the tool cache (set XDG_CACHE_HOME to a writable directory): %w", err)
	}
	f := finder{opts: ToolOptions{Pinned: true, Progress: progress}, cache: cache}
	unlock, err := lockFile(ctx, filepath.Join(cache, ".lock-"+vaultProvider.name), func() {
		progress(vaultProvider.name + ": waiting for another process that builds it")
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if path, ok := f.cached(vaultProvider); ok {
		return path, nil
	}
	return f.build(ctx, vaultProvider)
}
