package lifecycle

import (
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// Objects are deleted manually in Nomad: its garbage, an engine's variable, an engine's
// volume. Engines continue, or a call reports what is missing, and the rest can be
// destroyed.
func TestDeletedByHand(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=byhand/", "ORCH_VOLUME_POOL=4", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2"))
	s, c, ctx := harness.OpenStores(t, stack), r.Product(t, nil), t.Context()
	made := func(t *testing.T, user string) *client.Engine {
		t.Helper()
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, user)
		return e
	}
	knows := func(t *testing.T, user string) *client.Engine {
		t.Helper()
		e := harness.AwaitEngine(t, c, user, "running", "")
		if err := harness.Export(t, e, e.APIKey).Knows(user); err != nil {
			t.Error(err)
		}
		return e
	}
	restart := func(t *testing.T, user string) {
		t.Helper()
		if _, err := c.Stop(ctx, user); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx, user); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("Garbage", func(t *testing.T) {
		running, _, crashed := made(t, "running"), made(t, "stopped"), made(t, "crashed")
		if _, err := c.Stop(ctx, "stopped"); err != nil {
			t.Fatal(err)
		}
		harness.CrashEngine(t, crashed)
		for range 3 {
			if err := s.Nomad.System().GarbageCollect(); err != nil {
				t.Fatal(err)
			}
		}
		if e := knows(t, "running"); e.URL != running.URL {
			t.Error("it runs elsewhere")
		}
		if _, err := c.Start(ctx, "stopped"); err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"stopped", "crashed"} {
			knows(t, user)
			restart(t, user)
			knows(t, user)
		}
	})
	t.Run("Variable", func(t *testing.T) {
		e := made(t, "variable")
		remove := func() {
			t.Helper()
			if _, err := s.Nomad.Variables().Delete("nomad/jobs/engine-"+e.EngineID, nil); err != nil {
				t.Fatal(err)
			}
		}
		remove()
		if now := knows(t, "variable"); now.URL != e.URL {
			t.Error("it runs elsewhere")
		}
		key, err := c.RotateKey(ctx, "variable")
		if err != nil {
			t.Fatal(err)
		}
		harness.KeyIs(t, e, key, true)
		harness.KeyIs(t, e, e.APIKey, false)
		remove()
		restart(t, "variable")
		knows(t, "variable")
	})
	t.Run("Volume", func(t *testing.T) {
		e := made(t, "volume")
		if _, err := c.Stop(ctx, "volume"); err != nil {
			t.Fatal(err)
		}
		list, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			if v.Name == "engine-"+e.EngineID {
				if _, _, err := s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: v.ID}, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		refused := harness.WantCode(t, harness.ErrOf(c.Start(ctx, "volume")), 503, "CAPACITY_EXHAUSTED")
		if !strings.Contains(refused.Message, "volume") {
			t.Errorf("it got %q", refused.Message)
		}
	})
	for _, user := range []string{"running", "stopped", "crashed", "variable", "volume"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	if unreachable := r.Unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
}
