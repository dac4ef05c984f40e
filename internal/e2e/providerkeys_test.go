package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// hasProviderKey says whether an engine's process has this LLM_API_KEY.
func hasProviderKey(ctx context.Context, e *client.Engine, want string) error {
	var env struct {
		Variables map[string]struct {
			SHA256 string `json:"sha256"`
		}
	}
	if _, err := engineCall(ctx, e, e.APIKey, http.MethodGet, "/env?names=LLM_API_KEY", nil, &env); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(want))
	if env.Variables["LLM_API_KEY"].SHA256 != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("it does not have the %s key", want)
	}
	return nil
}

// New provider keys reach running engines by restarts one after the other; brain
// and key stay. A rollout whose engines do not come back halts, and goes on when
// it is asked for again.
func TestProviderKeys(t *testing.T) {
	t.Parallel()
	// Provider keys are one secret of a Vault: a stack of its own.
	stack := ownStack(t)
	bin := t.TempDir()
	image := filepath.Join(bin, "reference-engine")
	link := func() {
		t.Helper()
		if err := os.Link(filepath.Join(binDir, "reference-engine"), image); err != nil {
			t.Fatal(err)
		}
	}
	link()
	vars := map[string]string{
		"ORCH_CONSUL_PREFIX": "keys/", "ORCH_ENGINE_BIN_DIR": bin, "ORCH_VOLUME_POOL": "4", "ORCH_RESTART_MAX_ATTEMPTS": "0",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"), "LLM_API_KEY": "first",
	}
	ctx, s := t.Context(), openStores(t, stack)
	r := startService(t, stack, vars)
	c := r.product(t, nil)
	users, engines := []string{"a", "b", "c", "d"}, map[string]*client.Engine{}
	for _, user := range append(slices.Clone(users), "sleeper") {
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		remember(t, e, e.APIKey, "of "+user)
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
		if err := hasProviderKey(ctx, now, want); err != nil {
			return fmt.Errorf("%s: %w", user, err)
		}
		return export(t, now, now.APIKey).knows("of " + user)
	}
	restart := func(key string) {
		t.Helper()
		r.stop()
		vars["LLM_API_KEY"] = key
		r = startService(t, stack, vars)
		c.BaseURL = r.url
	}
	version := func() string {
		t.Helper()
		secret, err := s.vault.Logical().Read(mountName("keys/") + "/metadata/engine-env")
		if err != nil || secret == nil {
			t.Fatalf("%v, %v", secret, err)
		}
		return fmt.Sprint(secret.Data["current_version"])
	}
	rolled := func(what string, done func(*client.Rollout) bool) *client.Rollout {
		t.Helper()
		var now *client.Rollout
		eventually(t, what, func() (err error) {
			if now, err = r.admin().ProviderKeys(ctx); err == nil && !done(now) {
				err = fmt.Errorf("%+v", now)
			}
			return err
		})
		return now
	}

	if got, err := r.admin().ProviderKeys(ctx); err != nil || got.Status != "none" {
		t.Fatalf("before any rollout: %+v, %v", got, err)
	}
	restart("first")
	if got := version(); got != "1" {
		t.Fatalf("a restart with the same keys made version %s of them", got)
	}
	restart("second")
	if got := version(); got != "2" {
		t.Fatalf("a restart with other keys made version %s of them", got)
	}
	for _, user := range users {
		if err := has(user, "first"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.admin().ApplyProviderKeys(ctx); err != nil {
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
		runs := export(t, now, now.APIKey).Runs
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
			t.Errorf("two engines were away at a time: %v", gaps)
		}
	}
	restarts := 0
	for _, row := range r.audited(t, "start") {
		if row.Metadata["why"] == "provider_keys" && row.Actor == "system" && row.Outcome == "ok" {
			restarts++
		}
	}
	if restarts != 4 {
		t.Errorf("%d restarts are audited: %+v", restarts, r.audited(t, "start"))
	}
	// Who did not run gets them at the next start; asked again, nothing happens.
	if _, err := c.Start(ctx, "sleeper"); err != nil {
		t.Fatal(err)
	}
	if err := has("sleeper", "second"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.admin().ApplyProviderKeys(ctx); err != nil || got.Status != "done" || got.Restarted != 4 {
		t.Fatalf("asked again: %+v, %v", got, err)
	}
	if _, err := c.Destroy(ctx, "sleeper"); err != nil {
		t.Fatal(err)
	}

	// Three in a row that do not come back are enough.
	restart("third")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin().ApplyProviderKeys(ctx); err != nil {
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
	if _, err := r.admin().ApplyProviderKeys(ctx); err != nil {
		t.Fatal(err)
	}
	rolled("the rollout goes on", func(p *client.Rollout) bool { return p.Status == "done" && p.Pending == 0 })
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
