package lifecycle

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

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
