package lifecycle

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestContainerIsConfined inspects the container of an engine.
func TestContainerIsConfined(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_ENGINE_MEMORY_MB": "64"}))
	c := r.Product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	found := harness.Inspect(t, e)
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
			t.Error("the key is in the container's environment")
		}
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
}

// TestImageWithoutATagIsPulled: a node contacts a registry for such an image even if it has
// the image. If that fails, the caller is told what to do.
func TestImageWithoutATagIsPulled(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_VOLUME_POOL": "1"}))
	c := r.Product(t, map[string]any{"allowed_images": []string{"*"}})
	_, err := c.Provision(t.Context(), "u", "node.invalid/lab/engine")
	if e := harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED"); !strings.Contains(e.Message, "needs another tag") {
		t.Errorf("it does not say what to do: %s", e.Message)
	}
	if _, err := c.Destroy(t.Context(), "u"); err != nil {
		t.Error(err)
	}
}
