package lifecycle

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestNomadView: a Nomad operator sees in an engine's job whose it is, how orch sees it and
// why, whatever changed the state, with a link to its health in Consul, and finds it by its
// user. None of that starts a process.
func TestNomadView(t *testing.T) {
	t.Parallel()
	const prefix, user = "nomad-view/", "jürgen 日本"
	vars := harness.With(harness.Soon, "ORCH_VOLUME_POOL=2", "ORCH_RESTART_MAX_ATTEMPTS=0", "ORCH_JOB_USER=plain", "ORCH_CONSUL_UI_URL=https://consul.example/ui/dc1/")
	r := harness.StartService(t, harness.Shared, harness.With(vars, "ORCH_CONSUL_PREFIX="+prefix))
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
	const lost = user + " 1"
	crashing, err := c.Provision(ctx, lost, "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it is given up", func() error {
		now, err := c.Engine(ctx, lost)
		if err != nil {
			return err
		}
		if now.Status == client.Running && now.URL != "" {
			_, _ = harness.EngineCall(ctx, now, now.APIKey, http.MethodPost, "/crash", nil, nil)
		}
		allocs, _, err := s.Nomad.Jobs().Allocations("engine-"+crashing.EngineID, true, nil)
		if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != nomad.AllocClientStatusFailed {
			return fmt.Errorf("%s, %d allocations, %w", now.Status, len(allocs), err)
		}
		return nil
	})
	shows(crashing.EngineID, "failed, crashed")
	if n := started(crashing.EngineID); n != 1 {
		t.Errorf("%d processes were started", n)
	}

	// Nomad forgets its allocation, and would start a process when the job is written. That
	// of the running engine is written in the same passes.
	harness.Eventually(t, "Nomad has no allocation of it", func() error {
		if err := s.Nomad.System().GarbageCollect(); err != nil {
			return err
		}
		if n := started(crashing.EngineID); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
	relabelled := func(u string) {
		t.Helper()
		s.Edit(prefix, u, func(row map[string]any) {
			row["shown"] = "something else"
			if row["state"] == "failed" { // the job shows another reason
				row["reason"] = "unhealthy"
			}
		})
		harness.Eventually(t, "its label is looked at", func() error {
			rows, err := s.Engines(prefix)
			for _, row := range rows {
				if row.UserID == u && row.Shown == "something else" {
					err = fmt.Errorf("not yet")
				}
			}
			return err
		})
	}
	relabelled(lost)
	relabelled(user)
	if count, running := s.Processes(crashing.EngineID); count != 1 || running != 0 || started(crashing.EngineID) != 0 {
		t.Errorf("the label started a process: %d run of %d", running, count)
	}
	shows(e.EngineID, "running")

	// A boot that fails shows its reason.
	short := harness.StartService(t, harness.Shared, harness.With(vars, "ORCH_CONSUL_PREFIX=nomad-view-2/", "ORCH_BOOT_TIMEOUT_S=8")).Product(t, harness.AnyImage)
	harness.WantCode(t, harness.ErrOf(short.Provision(ctx, user, "reference-engine.never-listen")), 504, "BOOT_TIMEOUT")
	bad, err := short.Engine(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	shows(bad.EngineID, "failed, boot_timeout")
	if _, err := short.Destroy(ctx, user); err != nil {
		t.Error(err)
	}
	rows, err := s.Engines(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if want := string(row.State); row.Shown != want && row.Shown != want+", "+row.Reason {
			t.Errorf("the row of %s is %s, %s, and says that its job shows %q", row.EngineID, row.State, row.Reason, row.Shown)
		}
	}
	for _, u := range []string{user, lost} {
		if _, err := c.Destroy(ctx, u); err != nil {
			t.Error(err)
		}
	}
}
