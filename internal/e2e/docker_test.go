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
	for _, env := range found.Config.Env {
		if strings.Contains(env, e.APIKey) {
			t.Error("the key stands in the container's environment")
		}
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
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
