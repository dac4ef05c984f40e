package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// New provider keys reach running engines by successive restarts; brain and key stay. A
// rollout whose engines do not come back halts, and resumes on request.
func TestProviderKeys(t *testing.T) {
	t.Parallel()
	// Provider keys are one secret per Vault, so the test has its own stack.
	stack := harness.OwnStack(t)
	bin := t.TempDir()
	image := filepath.Join(bin, "reference-engine")
	link := func() {
		t.Helper()
		if err := os.Link(filepath.Join(harness.BinDir, "reference-engine"), image); err != nil {
			t.Fatal(err)
		}
	}
	link()
	vars := map[string]string{
		"ORCH_CONSUL_PREFIX": "keys/", "ORCH_ENGINE_BIN_DIR": bin, "ORCH_VOLUME_POOL": "4", "ORCH_RESTART_MAX_ATTEMPTS": "0",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"), "LLM_API_KEY": "first",
	}
	ctx, s := t.Context(), harness.OpenStores(t, stack)
	r := harness.StartService(t, stack, vars)
	c := r.Product(t, nil)
	users, engines := []string{"a", "b", "c", "d"}, map[string]*client.Engine{}
	for _, user := range append(slices.Clone(users), "sleeper") {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, "of "+user)
		engines[user] = e
	}
	if _, err := c.Stop(ctx, "sleeper"); err != nil {
		t.Fatal(err)
	}
	has := func(user, want string) error {
		now, err := c.Engine(ctx, user)
		if err != nil || now.APIKey != engines[user].APIKey || now.EngineID != engines[user].EngineID || now.Status != "running" {
			return fmt.Errorf("%s: %+v, %w", user, now, err)
		}
		if err := harness.HasProviderKey(ctx, now, want); err != nil {
			return fmt.Errorf("%s: %w", user, err)
		}
		return harness.Export(t, now, now.APIKey).Knows("of " + user)
	}
	restart := func(key string) {
		t.Helper()
		r.Stop()
		vars["LLM_API_KEY"] = key
		r = harness.StartService(t, stack, vars)
		c.BaseURL = r.URL
	}
	version := func() string {
		t.Helper()
		secret, err := s.Vault.Logical().Read(harness.MountName("keys/") + "/metadata/engine-env")
		if err != nil || secret == nil {
			t.Fatalf("%v, %v", secret, err)
		}
		return fmt.Sprint(secret.Data["current_version"])
	}
	rolled := func(what string, done func(*client.Rollout) bool) *client.Rollout {
		t.Helper()
		var now *client.Rollout
		harness.Eventually(t, what, func() (err error) {
			if now, err = r.Admin().ProviderKeys(ctx); err == nil && !done(now) {
				err = fmt.Errorf("%+v", now)
			}
			return err
		})
		return now
	}

	if got, err := r.Admin().ProviderKeys(ctx); err != nil || got.Status != "none" {
		t.Fatalf("before any rollout: %+v, %v", got, err)
	}
	restart("first")
	if got := version(); got != "1" {
		t.Fatalf("a restart with the same keys wrote version %s", got)
	}
	restart("second")
	if got := version(); got != "2" {
		t.Fatalf("a restart with other keys wrote version %s", got)
	}
	for _, user := range users {
		if err := has(user, "first"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Admin().ApplyProviderKeys(ctx); err != nil {
		t.Fatal(err)
	}
	if got := rolled("the rollout is done", func(p *client.Rollout) bool { return p.Status == "done" }); got.TargetVersion != 2 || got.Restarted != 4 || got.Failed != 0 {
		t.Errorf("the rollout ended as %+v", got)
	}
	type gap struct{ from, to time.Time }
	var gaps []gap
	for _, user := range users {
		if err := has(user, "second"); err != nil {
			t.Fatal(err)
		}
		now, err := c.Engine(ctx, user)
		if err != nil {
			t.Fatal(err)
		}
		runs := harness.Export(t, now, now.APIKey).Runs
		if len(runs) != 2 {
			t.Fatalf("%s ran %+v", user, runs)
		}
		old, current := runs[0], runs[1]
		if old.EndedAt == nil {
			old, current = current, old
		}
		gaps = append(gaps, gap{*old.EndedAt, current.StartedAt})
	}
	slices.SortFunc(gaps, func(a, b gap) int { return a.from.Compare(b.from) })
	for i := range gaps[1:] {
		if gaps[i+1].from.Before(gaps[i].to) {
			t.Errorf("two engines were down concurrently: %v", gaps)
		}
	}
	harness.Eventually(t, "four restarts are audited", func() error {
		restarts, rows := 0, r.Audited(t, "start")
		for _, row := range rows {
			if row.Metadata["why"] == "provider_keys" && row.Actor == "system" && row.Outcome == "ok" {
				restarts++
			}
		}
		if restarts != 4 {
			return fmt.Errorf("%d of %+v", restarts, rows)
		}
		return nil
	})
	// An engine that did not run gets them at its next start; a repeated request changes
	// nothing.
	if _, err := c.Start(ctx, "sleeper"); err != nil {
		t.Fatal(err)
	}
	if err := has("sleeper", "second"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Admin().ApplyProviderKeys(ctx); err != nil || got.Status != "done" || got.Restarted != 4 {
		t.Fatalf("second request: %+v, %v", got, err)
	}
	if _, err := c.Destroy(ctx, "sleeper"); err != nil {
		t.Fatal(err)
	}

	// Three successive engines that do not come back halt the rollout.
	restart("third")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Admin().ApplyProviderKeys(ctx); err != nil {
		t.Fatal(err)
	}
	got := rolled("the rollout halts", func(p *client.Rollout) bool { return p.Status == "halted" })
	if got.Pending != 1 || got.Failed != 3 {
		t.Fatalf("it halted as %+v", got)
	}
	if err := has("d", "second"); err != nil {
		t.Fatalf("the last one was not left alone: %v", err)
	}
	link()
	if _, err := r.Admin().ApplyProviderKeys(ctx); err != nil {
		t.Fatal(err)
	}
	rolled("the rollout resumes", func(p *client.Rollout) bool { return p.Status == "done" && p.Pending == 0 })
	for _, user := range users {
		if got, err := c.Engine(ctx, user); err == nil && got.Status == "failed" {
			if _, err := c.Start(ctx, user); err != nil {
				t.Fatal(err)
			}
		}
		if err := has(user, "third"); err != nil {
			t.Error(err)
		}
	}
}
