package lifecycle

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// note calls the engine of the tutorial and returns its response.
func note(t *testing.T, e *client.Engine, key, method, text string, code int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, e.URL+"/notes", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Engine-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != code {
		t.Fatalf("%s /notes: %d %s, %v; want %d", method, resp.StatusCode, body, err, code)
	}
	return string(body)
}

// TestTutorialEngine runs the engine of docs/tutorial-engine.md through its life, following
// the page.
func TestTutorialEngine(t *testing.T) {
	t.Parallel()
	examples, err := filepath.Abs(harness.Repository + "/examples")
	if err != nil {
		t.Fatal(err)
	}
	r := harness.StartService(t, harness.Shared, map[string]string{
		"ORCH_ENGINE_BIN_DIR": examples, "ORCH_ENGINE_IMAGE": "notes-engine.py", "ORCH_ENGINE_LOGS": "nomad",
	})
	c, ctx := r.Product(t, map[string]any{"idle_timeout_s": 5}), t.Context()
	e := harness.Provision(t, c, "u", "")
	note(t, e, "", http.MethodGet, "", http.StatusUnauthorized)
	note(t, e, e.APIKey, http.MethodPost, "milk", http.StatusCreated)

	key, err := c.RotateKey(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	note(t, e, e.APIKey, http.MethodGet, "", http.StatusUnauthorized)
	note(t, e, key, http.MethodPost, "bread", http.StatusCreated)
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the idle engine sleeps", func() error { return harness.InState(t, c, "u", "sleeping") })
	a, err := harness.Admit(ctx, c, "u", false, true)
	if err != nil || !a.Admitted {
		t.Fatalf("admit: %+v, %v", a, err)
	}
	if got, want := note(t, a.Engine, a.Engine.APIKey, http.MethodGet, "", http.StatusOK), `{"notes": ["milk", "bread"]}`; got != want {
		t.Errorf("after a rotation, a stop, a start and a sleep the notes are %s, want %s", got, want)
	}
}
