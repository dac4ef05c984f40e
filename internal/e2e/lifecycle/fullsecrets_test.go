package lifecycle

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// secretsDir returns the directory that Nomad created for the secrets of an engine's
// allocation, as this process sees it.
func secretsDir(t *testing.T, engineID string) string {
	t.Helper()
	for _, pid := range harness.Containers(engineID) {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for _, variable := range bytes.Split(env, []byte{0}) {
			if dir, found := strings.CutPrefix(string(variable), "NOMAD_SECRETS_DIR="); found {
				return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), dir)
			}
		}
	}
	t.Fatal("no process of the engine has a directory for secrets")
	return ""
}

// TestRotationWithFullSecrets: Nomad writes a key's hash into a small file system that an
// engine can fill, and ends the engine's process if it cannot. The rotation reports that as
// soon as Nomad does, and the next process has the new key.
func TestRotationWithFullSecrets(t *testing.T) { harness.EachDriver(t, testRotationWithFullSecrets) }

func testRotationWithFullSecrets(t *testing.T, d harness.Driver) {
	images := map[string]string{"restart": "", "signal": ""}
	if d.Name == harness.RawExec.Name {
		images["signal"] = "ignore-sigterm"
	}
	for reload, image := range images {
		t.Run(reload, func(t *testing.T) {
			t.Parallel()
			r := harness.StartService(t, harness.Shared, d.With(map[string]string{"ORCH_ENGINE_KEY_RELOAD": reload, "ORCH_VOLUME_POOL": "1"}))
			c, ctx := r.Product(t, harness.AnyImage), t.Context()
			e, err := c.Provision(ctx, "u", d.Image(image))
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, "kept")
			if err := os.WriteFile(filepath.Join(secretsDir(t, e.EngineID), "ballast"), make([]byte, 4<<20), 0o600); err == nil {
				t.Fatal("the directory for secrets has no limit")
			}
			began := time.Now()
			refused := harness.WantCode(t, harness.ErrOf(c.RotateKey(ctx, "u")), 504, "ROTATION_UNCONFIRMED")
			took := time.Since(began)
			t.Logf("refused after %s: %s", took.Round(time.Millisecond), refused.Message)
			if took > 25*time.Second { // a process that ignores SIGTERM ends 30 s later
				t.Error("it is not reported as soon as Nomad reports it")
			}
			for _, what := range []string{"NOMAD_SECRETS_DIR", "fills it", "Template failed", "engine_key"} {
				if !strings.Contains(refused.Message, what) {
					t.Errorf("it got %q, without %q", refused.Message, what)
				}
			}
			if strings.Contains(refused.Message, "/alloc/") {
				t.Errorf("it got a path: %q", refused.Message)
			}
			if admitted, err := harness.Admit(ctx, c, "u", false, false); err == nil && admitted.Admitted {
				harness.KeyIs(t, admitted.Engine, admitted.Engine.APIKey, true)
			}
			var now *client.Engine
			harness.Eventually(t, "its next process runs", func() (err error) {
				if now, err = harness.EngineIs(t, c, "u", client.Running, ""); err != nil {
					return err
				}
				// The process of before refuses the new key, and may have ended unnoticed.
				status, err := harness.EngineCall(ctx, now, now.APIKey, http.MethodGet, "/info", nil, nil)
				if err == nil && (status != http.StatusOK || now.APIKey == e.APIKey) {
					err = fmt.Errorf("it is the one of before: %d", status)
				}
				return err
			})
			if now.APIKey == e.APIKey {
				t.Error("it has the old key")
			}
			harness.KeyIs(t, now, now.APIKey, true)
			harness.KeyIs(t, now, e.APIKey, false)
			if err := harness.Export(t, now, now.APIKey).Knows("kept"); err != nil {
				t.Error(err)
			}
			if n := harness.Actions(t, c, "u"); n["rotate_key"] != 1 {
				t.Errorf("the audit log has %v", n)
			}
			if _, err := c.RotateKey(ctx, "u"); err != nil {
				t.Errorf("it cannot be rotated afterwards: %v", err)
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}
