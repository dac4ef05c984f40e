package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

// TestContainerIsConfined looks at the container that an engine runs in.
func TestContainerIsConfined(t *testing.T) {
	needDocker(t)
	t.Parallel()
	r := startService(t, shared, docker.with(map[string]string{"ORCH_ENGINE_MEMORY_MB": "64"}))
	c := r.product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	found := inspect(t, e)
	h := found.HostConfig
	if !h.ReadonlyRootfs || h.Privileged || len(h.CapDrop) != 1 || strings.ToUpper(h.CapDrop[0]) != "ALL" ||
		!strings.Contains(strings.Join(h.SecurityOpt, ","), "no-new-privileges") || h.PidsLimit <= 0 || h.Memory != 64<<20 || h.CPUShares <= 0 {
		t.Errorf("the container is not confined: %+v", h)
	}
	if found.Config.User != "65532:65532" {
		t.Errorf("the container runs as %q", found.Config.User)
	}
	tmp := 0
	for _, m := range h.Mounts {
		if m.Type == "tmpfs" && m.Target == "/tmp" && m.TmpfsOptions.SizeBytes == 64<<20 {
			tmp++
		}
	}
	if tmp != 1 {
		t.Errorf("/tmp is no tmpfs of 64 MiB: %+v", h.Mounts)
	}
	for _, env := range found.Config.Env {
		if strings.Contains(env, e.APIKey) {
			t.Error("the key stands in the container's environment")
		}
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// TestImageWithoutATagIsPulled: a node asks a registry for such an image also when it has
// it. Where that fails, the caller hears what to do.
func TestImageWithoutATagIsPulled(t *testing.T) {
	needDocker(t)
	t.Parallel()
	r := startService(t, shared, docker.with(map[string]string{"ORCH_VOLUME_POOL": "1"}))
	c := r.product(t, map[string]any{"allowed_images": []string{"*"}})
	_, err := c.Provision(t.Context(), "u", "node.invalid/lab/engine")
	if e := wantCode(t, err, 502, "ENGINE_BOOT_FAILED"); !strings.Contains(e.Message, "needs another tag") {
		t.Errorf("it does not say what to do: %s", e.Message)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Error(err)
	}
}

type container struct {
	ID     string `json:"Id"`
	State  struct{ Pid int }
	Config struct {
		User  string
		Image string
		Env   []string
	}
	HostConfig struct {
		ReadonlyRootfs, Privileged bool
		CapDrop, SecurityOpt       []string
		PidsLimit, Memory          int64
		CPUShares                  int64 `json:"CpuShares"`
		Mounts                     []struct {
			Type, Target string
			TmpfsOptions struct{ SizeBytes int64 }
		}
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
