package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestNoKeyLeaks runs engines through their life and then searches for every key that ever
// existed, in every store, log, allocation and process argument.
func TestNoKeyLeaks(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, map[string]string{"ORCH_ENGINE_LOGS": "nomad"})
	c := r.Product(t, harness.AnyImage)
	ctx := t.Context()
	keys := map[string]string{"admin key": harness.AdminKey, "platform key": c.PlatformKey, "provider key": harness.ProviderKey, "vault token": stack.VaultOrchToken}

	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	keys["engine key"] = e.APIKey
	if keys["rotated key"], err = c.RotateKey(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	// The provider key did reach the engine.
	var env struct {
		Variables map[string]struct {
			Set    bool
			SHA256 string
		}
	}
	if _, err := harness.EngineCall(ctx, e, keys["rotated key"], http.MethodGet, "/env?names=LLM_API_KEY,VAULT_TOKEN,NOMAD_TOKEN", nil, &env); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(harness.ProviderKey))
	if got := env.Variables["LLM_API_KEY"]; got.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("LLM_API_KEY did not reach the engine: %+v", got)
	}
	for _, name := range []string{"VAULT_TOKEN", "NOMAD_TOKEN"} {
		if env.Variables[name].Set {
			t.Errorf("the engine has a %s", name)
		}
	}
	// Failures log most: a boot that fails, and bad requests that contain keys.
	_, _ = c.Provision(ctx, "fails", "reference-engine.exit-at-start")
	_ = c.Do(ctx, http.MethodPost, "/engines/provision", map[string]any{c.PlatformKey: e.APIKey}, nil)
	_ = c.Do(ctx, http.MethodGet, "/"+c.PlatformKey, nil, nil)
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}

	haystack := harness.OpenStores(t, stack).Dump(stack)
	haystack["log of the service"] = r.Logs.String()
	if len(haystack["log of the service"]) < 1000 {
		t.Fatal("the service's log is missing")
	}
	// The search works: it finds the hash in the Nomad variable.
	hash := sha256.Sum256([]byte(keys["rotated key"]))
	if !strings.Contains(haystack["nomad variable nomad/jobs/engine-"+e.EngineID], hex.EncodeToString(hash[:])) {
		t.Error("the key's hash is not in the Nomad variable: the search is blind")
	}
	for place, text := range haystack {
		for name, key := range keys {
			if strings.Contains(text, key) {
				t.Errorf("the %s is in %s", name, place)
			}
		}
	}
}
