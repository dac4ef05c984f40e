package faults

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestTLSOfAnotherReplica: a replica that was configured otherwise finishes a provision after
// its job was registered. The engine serves as that job makes it serve, and the row says so;
// it changes at its next start.
func TestTLSOfAnotherReplica(t *testing.T) {
	t.Parallel()
	ca, err := harness.Shared.EnginePKI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ first, then, before, after string }{
		"TurnedOn":  {"off", "pki", "http://", "https://"},
		"TurnedOff": {"pki", "off", "https://", "http://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, prefix, database := t.Context(), "tls-"+tc.first+"/", "sqlite://"+filepath.Join(t.TempDir(), "audit.db")
			dead := harness.StartFaulty(t, prefix, database, "kill provision/register/done", "ORCH_ENGINE_TLS="+tc.first, "ORCH_ENGINE_CA_FILE="+ca)
			p, err := dead.RegisterProduct(ctx, "tls", "TLS", nil)
			if err != nil {
				t.Fatal(err)
			}
			dead.PlatformKey = p.PlatformAPIKey
			if e, err := dead.Provision(ctx, "u", ""); err == nil {
				t.Fatalf("the replica lives, and returned %+v", e)
			}
			if err := dead.AwaitDeath(); err != nil {
				t.Fatal(err)
			}
			c := harness.StartProcess(t, harness.Shared, prefix, "ORCH_ENGINE_TLS="+tc.then, "ORCH_ENGINE_CA_FILE="+ca)
			c.PlatformKey = dead.PlatformKey
			e := harness.AwaitEngine(t, c.Client, "u", "running", "")
			if !strings.HasPrefix(e.URL, tc.before) {
				t.Errorf("its url is %q, want %s", e.URL, tc.before)
			}
			if _, err := c.RotateKey(ctx, "u"); err != nil {
				t.Error(err)
			}
			if _, err := c.Stop(ctx, "u"); err != nil {
				t.Fatal(err)
			}
			if e, err = c.Start(ctx, "u"); err != nil || !strings.HasPrefix(e.URL, tc.after) {
				t.Errorf("after a start: %+v, %v, want %s", e, err, tc.after)
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}
