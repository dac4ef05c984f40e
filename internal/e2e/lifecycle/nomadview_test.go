package lifecycle

import (
	"fmt"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestNomadView: a Nomad operator sees in an engine's job whose it is, how orch sees it and
// why, whatever changed the state, with a link to its health in Consul, and finds it by its
// user. None of that starts a process.
func TestNomadView(t *testing.T) {
	t.Parallel()
	const prefix, user = "nomad-view/", "jürgen 日本"
	r := harness.StartService(t, harness.Shared, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=2",
		"ORCH_RESTART_MAX_ATTEMPTS=0", "ORCH_JOB_USER=plain", "ORCH_CONSUL_UI_URL=https://consul.example/ui/dc1/", "ORCH_BOOT_TIMEOUT_S=8"))
	c, ctx, s := r.Product(t, harness.AnyImage), t.Context(), harness.OpenStores(t, harness.Shared)
	e, err := c.Provision(ctx, user, "")
	if err != nil {
		t.Fatal(err)
	}
	shows := func(id, what string) {
		t.Helper()
		s.Described(id, user, "\n\nState in orch: "+what)
		job, _, err := s.Nomad.Jobs().Info("engine-"+id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, state, _ := strings.Cut(job.UI.Description, "State in orch: "); state != what {
			t.Errorf("it shows %q, want %q", state, what)
		}
		if links := job.UI.Links; len(links) != 1 || links[0].URL != "https://consul.example/ui/dc1/services/engine-"+id {
			t.Errorf("its links are %+v", links)
		}
	}
	started := func(id string) (n int) {
		t.Helper()
		allocs, _, err := s.Nomad.Jobs().Allocations("engine-"+id, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return len(allocs)
	}
	shows(e.EngineID, "running")
	found, _, err := s.Nomad.Jobs().ListOptions(&nomad.JobListOptions{Fields: &nomad.JobListFields{Meta: true}}, &nomad.QueryOptions{Filter: fmt.Sprintf(`Meta.user == %q`, user)})
	if err != nil || len(found) != 1 || found[0].ID != "engine-"+e.EngineID {
		t.Errorf("a search for the user finds %d jobs, %v", len(found), err)
	}
	if _, err := c.Stop(ctx, user); err != nil {
		t.Fatal(err)
	}
	shows(e.EngineID, "stopped")
	if _, err := c.Start(ctx, user); err != nil {
		t.Fatal(err)
	}
	shows(e.EngineID, "running")

	// Its process ends until Nomad gives up; no operation runs then.
	crashing, err := c.Provision(ctx, user+" 1", "reference-engine.crash-after-4s")
	if err != nil {
		t.Fatal(err)
	}
	shows(crashing.EngineID, "failed, crashed")
	harness.IsNow(t, c, user+" 1", "failed", "crashed")
	harness.Eventually(t, "nothing else happens", func() error {
		if count, running := s.Processes(crashing.EngineID); running != 0 || started(crashing.EngineID) != 1 {
			return fmt.Errorf("%d run of %d, in %d allocations", running, count, started(crashing.EngineID))
		}
		return nil
	})

	// A boot that fails shows its reason, and a start that is refused the state of before.
	harness.WantCode(t, harness.ErrOf(c.Provision(ctx, user+" 2", "reference-engine.never-listen")), 504, "BOOT_TIMEOUT")
	bad, err := c.Engine(ctx, user+" 2")
	if err != nil {
		t.Fatal(err)
	}
	shows(bad.EngineID, "failed, boot_timeout")
	rows, err := s.Engines(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if want := string(row.State); row.Shown != want && row.Shown != want+", "+row.Reason {
			t.Errorf("the row of %s is %s, %s, and says that its job shows %q", row.EngineID, row.State, row.Reason, row.Shown)
		}
	}
	for _, u := range []string{user, user + " 1", user + " 2"} {
		if _, err := c.Destroy(ctx, u); err != nil {
			t.Error(err)
		}
	}
}
