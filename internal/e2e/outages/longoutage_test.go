package outages

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// EnvLongOutage sets how long TestLongOutages makes a dependency unavailable, as in 15m.
// With Nomad's default settings, engines would be ended after 5 to 10 minutes.
const EnvLongOutage = "ORCH_TEST_LONG_OUTAGE"

// Vault, and all Nomad servers, are unavailable for long: no engine is ended because of
// that, and everything works again without a restart of the service.
func TestLongOutages(t *testing.T) {
	t.Parallel()
	long := 20 * time.Second
	if text := os.Getenv(EnvLongOutage); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", EnvLongOutage, err)
		}
	}
	for _, component := range []devstack.Component{devstack.Vault, devstack.NomadServer} {
		t.Run(string(component), func(t *testing.T) {
			t.Parallel()
			stack := harness.OwnStack(t)
			prefix := "long-" + string(component) + "/"
			r := harness.StartService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1"})
			c := r.Product(t, nil)
			ctx := t.Context()
			e, err := c.Provision(ctx, "u", "")
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, "before")
			before := harness.Export(t, e, e.APIKey)
			if err := stack.Kill(component); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(long); time.Now().Before(end); {
				a, err := harness.Admit(ctx, c, "u", false, false)
				if err != nil || !a.Admitted {
					t.Fatalf("admit during the outage: %+v, %v", a, err)
				}
				runs := harness.Export(t, e, e.APIKey).Runs
				if fmt.Sprint(runs) != fmt.Sprint(before.Runs) {
					t.Fatalf("%s before the end of the outage the engine was ended: %+v", time.Until(end).Round(time.Second), runs)
				}
				next := time.NewTimer(time.Second)
				select {
				case <-next.C:
				case <-ctx.Done():
					t.Fatal(ctx.Err())
				}
			}
			if err := stack.Restart(ctx, component); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, "keys can be rotated again", func() error {
				_, err := c.RotateKey(ctx, "u")
				return err
			})
			got, err := harness.EngineIs(t, c, "u", "running", "")
			if err != nil || got.APIKey == e.APIKey {
				t.Fatalf("after the outage: %+v, %v", got, err)
			}
			if err := harness.Export(t, got, got.APIKey).Knows("before"); err != nil {
				t.Error(err)
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
