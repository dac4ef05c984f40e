package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

// TestDocker runs the lifecycle on containers, and looks at how they are
// confined.
func TestDocker(t *testing.T) {
	if os.Getenv("DOCKER_HOST") == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("DOCKER_HOST is not set")
		}
		t.Skip("no docker engine: export DOCKER_HOST=$(tools/dockerd.sh start DIR) as root, then make engine-image")
	}
	t.Parallel()
	const image = "orch/reference-engine:1"
	r := startService(t, shared, map[string]string{
		"ORCH_ENGINE_DRIVER": "docker", "ORCH_ENGINE_IMAGE": image, "ORCH_ENGINE_MEMORY_MB": "64", "ORCH_ENGINE_BIN_DIR": "",
	})
	c := r.product(t, map[string]any{"allowed_images": []string{"orch/*"}})
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "in a container")

	t.Run("confined", func(t *testing.T) {
		found := inspect(t, e)
		h := found.HostConfig
		if !h.ReadonlyRootfs || h.Privileged || len(h.CapDrop) != 1 || strings.ToUpper(h.CapDrop[0]) != "ALL" ||
			!strings.Contains(strings.Join(h.SecurityOpt, ","), "no-new-privileges") || h.PidsLimit <= 0 || h.Memory != 64<<20 || h.CPUShares <= 0 {
			t.Errorf("the container is not confined: %+v", h)
		}
		if found.Config.User != "65532:65532" {
			t.Errorf("the container runs as %q", found.Config.User)
		}
		for _, env := range found.Config.Env {
			if strings.Contains(env, e.APIKey) {
				t.Error("the key stands in the container's environment")
			}
		}
	})
	key, err := c.RotateKey(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := engineCall(ctx, e, e.APIKey, http.MethodGet, "/memory/export", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("the old key gets %d, want 401", status)
	}
	if got, err := c.Engine(ctx, "u"); err != nil || got.URL != e.URL {
		t.Errorf("after rotation: %+v, %v", got, err)
	}
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	started, err := c.Start(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	if err := export(t, started, key).knows("in a container"); err != nil {
		t.Error(err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if left := openStores(t, shared).traces(e.EngineID); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	for image, reason := range map[string]string{"orch/reference-engine:exit-at-start": "crashed", "orch/no-such-image:1": "image_error"} {
		t.Run(image, func(t *testing.T) {
			_, err := c.Provision(ctx, image, image)
			wantCode(t, err, 502, "ENGINE_BOOT_FAILED")
			if got, err := c.Engine(ctx, image); err != nil || got.Status != "failed" || got.Reason != reason {
				t.Errorf("after the failure: %+v, %v", got, err)
			}
			if _, err := c.Destroy(ctx, image); err != nil {
				t.Fatal(err)
			}
		})
	}
}

type container struct {
	Config struct {
		User string
		Env  []string
	}
	HostConfig struct {
		ReadonlyRootfs, Privileged bool
		CapDrop, SecurityOpt       []string
		PidsLimit, Memory          int64
		CPUShares                  int64 `json:"CpuShares"`
	}
}

// inspect finds the container of an engine by its allocation's port.
func inspect(t *testing.T, e *client.Engine) container {
	t.Helper()
	port := e.URL[strings.LastIndexByte(e.URL, ':')+1:]
	out, err := exec.Command("docker", "ps", "-q", "--filter", "publish="+port).Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	if out, err = exec.Command("docker", "inspect", id).Output(); err != nil {
		t.Fatalf("inspect %q: %v", id, err)
	}
	var found []container
	if err := json.Unmarshal(out, &found); err != nil || len(found) != 1 {
		t.Fatalf("inspect %q: %d containers, %v", id, len(found), err)
	}
	return found[0]
}
