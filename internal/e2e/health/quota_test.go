package health

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// recorder is a volume plugin that sets no quota. Nomad's record of a volume shows the
// requested parameters.
const recorder = `#!/bin/sh
PATH=/usr/bin:/bin
dir="$DHV_VOLUMES_DIR/$DHV_VOLUME_ID"
case $1 in
fingerprint) echo '{"version": "1.0.0"}' ;;
create) mkdir -p "$dir" && echo "{\"path\": \"$dir\", \"bytes\": 0}" ;;
delete) rm -rf "$dir" ;;
esac
`

// TestBrainQuota: a policy's brain_mb reaches the volume plugin for pooled and other
// volumes, and after a change at the next start. Only a node with the plugin gets engines.
// If quotas cannot be set, the error says so: for mkdir when the policy is set, for the
// filesystem when the engine is created. (internal/volumeplugin tests orch-quota on
// filesystems with quotas.)
func TestBrainQuota(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	err := errors.Join(os.Chmod(plugins, 0o755), os.WriteFile(filepath.Join(plugins, "recorder"), []byte(recorder), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(plugins, "orch-quota"), "github.com/septemberai/orch/cmd/orch-quota")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stack := harness.OwnStack(t, devstack.Config{VolumePlugins: plugins, ExtraClients: 1})
	s, ctx := harness.OpenStores(t, stack), t.Context()

	t.Run("ErrMkdir", func(t *testing.T) {
		r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_POOL": "0"})
		err := harness.ErrOf(r.Admin().RegisterProduct(ctx, "quota", "Quota", &client.Policy{BrainMB: new(64)}))
		if bad := harness.WantCode(t, err, http.StatusBadRequest, "INVALID_REQUEST"); !strings.Contains(bad.Message, "ORCH_VOLUME_PLUGIN") {
			t.Errorf("it does not say what to set: %s", bad.Message)
		}
	})

	t.Run("OK", func(t *testing.T) {
		const prefix = "quota/"
		r := harness.StartService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_PLUGIN": "recorder", "ORCH_VOLUME_POOL": "1"})
		p, err := r.Admin().RegisterProduct(ctx, "quota", "Quota", &client.Policy{BrainMB: new(64)})
		if err != nil {
			t.Fatal(err)
		}
		c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
		want := func(when, user, quota string) {
			t.Helper()
			rows, err := s.Engines(prefix)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range rows {
				if row.UserID != user {
					continue
				}
				v, _, err := s.Nomad.HostVolumes().Get(row.VolumeID, nil)
				if err != nil {
					t.Fatal(err)
				}
				if v.Parameters["quota_mb"] != quota || v.Parameters["mode"] != "0700" || v.PluginID != "recorder" {
					t.Errorf("%s: the volume of %s is of plugin %s with %v; want a quota of %q", when, user, v.PluginID, v.Parameters, quota)
				}
				node, _, err := s.Nomad.Nodes().Info(v.NodeID, nil)
				if err != nil {
					t.Fatal(err)
				}
				if node.Attributes["plugins.host_volume.recorder.version"] == "" {
					t.Errorf("%s: the engine of %s is on a node without the plugin", when, user)
				}
				return
			}
			t.Errorf("%s: %s has no engine", when, user)
		}
		for _, user := range []string{"a", "b", "c"} { // more than the pool has
			if _, err := c.Provision(ctx, user, ""); err != nil {
				t.Fatal(err)
			}
			want("made", user, "64")
		}
		restart := func() {
			t.Helper()
			if _, err := c.Stop(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Start(ctx, "a"); err != nil {
				t.Fatal(err)
			}
		}
		for _, change := range []struct {
			policy client.Policy
			now    string
			then   string
		}{
			{client.Policy{BrainMB: new(32)}, "64", "32"},
			{client.Policy{}, "32", ""},
			{client.Policy{BrainMB: new(128)}, "", "128"},
		} {
			if _, err := r.Admin().SetPolicy(ctx, p.ProductID, change.policy); err != nil {
				t.Fatal(err)
			}
			want("before the next start", "a", change.now)
			restart()
			want("after it", "a", change.then)
		}
		for _, user := range []string{"a", "b", "c"} {
			if _, err := c.Destroy(ctx, user); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("ErrFilesystem", func(t *testing.T) {
		r := harness.StartService(t, stack, map[string]string{"ORCH_VOLUME_PLUGIN": "orch-quota", "ORCH_VOLUME_POOL": "0"})
		p, err := r.Admin().RegisterProduct(ctx, "quota", "Quota", &client.Policy{BrainMB: new(64)})
		if err != nil {
			t.Fatal(err)
		}
		c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
		refused := func(err error) {
			t.Helper()
			if bad := harness.WantCode(t, err, http.StatusBadGateway, "BACKEND_ERROR"); !strings.Contains(bad.Message, "enforces no project quotas") {
				t.Errorf("it does not say why: %s", bad.Message)
			}
		}
		policy := func(p2 client.Policy) {
			t.Helper()
			if _, err := r.Admin().SetPolicy(ctx, p.ProductID, p2); err != nil {
				t.Fatal(err)
			}
		}
		refused(harness.ErrOf(c.Provision(ctx, "u", "")))
		harness.Eventually(t, "nothing is left of it", func() error {
			if _, err := c.Engine(ctx, "u"); !errors.Is(err, client.ErrEngineNotFound) {
				return fmt.Errorf("the engine: %w", err)
			}
			return nil
		})
		policy(client.Policy{})
		if _, err := c.Provision(ctx, "u", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		policy(client.Policy{BrainMB: new(64)})
		refused(harness.ErrOf(c.Start(ctx, "u")))
		harness.AwaitEngine(t, c, "u", "stopped", "")
		policy(client.Policy{})
		if _, err := c.Start(ctx, "u"); err != nil {
			t.Errorf("without brain_mb: %v", err)
		}
		if _, err := c.Destroy(ctx, "u"); err != nil {
			t.Error(err)
		}
	})
}
