package devstack

import (
	"context"
	"time"
)

// VaultProviderVersion is the version of HashiCorp's Terraform provider for Vault that is
// built from tools/terraform-provider-vault: the newest that the Go module proxy has. Those
// for Nomad and Consul are not there in any version.
const VaultProviderVersion = "3.3.1"

// Programs that only tests need. They are built as the agents are.
var (
	gateway       = tool{name: "versitygw", command: "github.com/versity/versitygw/cmd/versitygw", version: GatewayVersion, cpu: 3 * time.Minute}
	vaultProvider = tool{name: "terraform-provider-vault", command: "github.com/hashicorp/terraform-provider-vault", version: VaultProviderVersion, cpu: 6 * time.Minute}
)

// Gateway builds versitygw, the S3 server of tests, unless it is in the cache, and returns
// its path. progress gets a line for every step that takes seconds or longer; it may be nil.
func Gateway(ctx context.Context, progress func(line string)) (string, error) {
	return pinned(ctx, gateway, progress)
}

// VaultProvider does the same for HashiCorp's Terraform provider for Vault, with which the
// Terraform modules in deploy/terraform are tested.
func VaultProvider(ctx context.Context, progress func(line string)) (string, error) {
	return pinned(ctx, vaultProvider, progress)
}

func pinned(ctx context.Context, t tool, progress func(string)) (string, error) {
	if progress == nil {
		progress = func(string) {}
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	f := finder{opts: ToolOptions{Pinned: true, Progress: progress}, cache: cache}
	return f.find(ctx, t)
}
