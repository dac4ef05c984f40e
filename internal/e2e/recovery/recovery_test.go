package recovery

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// A registry that is restored from a backup which is older than some provisions, destroys
// and rotations loses nothing and confuses no users: both with the service stopped, as the
// manual requires, and with the service running.
func TestRegistryRestored(t *testing.T) {
	t.Parallel()
	for name, stopped := range map[string]bool{"Stopped": true, "Running": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRegistryRestored(t, stopped)
		})
	}
}

// TestBackupWithoutALeader: a backup has the lock of a leader that is gone, so after its restore
// nobody leads for 20 s. Nothing is changed by what the backup says meanwhile.
func TestBackupWithoutALeader(t *testing.T) {
	t.Parallel()
	p, ctx := harness.NewPast(t, nil), t.Context()
	one := p.Tenant("one", nil)
	u := p.Provision(one, "one", "u")
	backup := p.Snapshot()
	var err error
	if u.Engine.APIKey, err = one.RotateKey(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	p.Restore(backup, true)
	one.BaseURL = p.R.URL
	harness.Eventually(t, "the engine is stopped", func() error {
		_, err := one.Stop(ctx, "u")
		return err
	})
	now, err := p.R.Admin().Registry(ctx)
	if err != nil || now.LastRecovery == nil {
		t.Errorf("before the registry was rebuilt: %+v, %v", now, err)
	}
	u.Status = "stopped"
	p.Whole()
}

func testRegistryRestored(t *testing.T, stopped bool) {
	p := harness.NewPast(t, map[string]string{"ORCH_WARM_POOL": "2"})
	ctx := t.Context()
	one := p.Tenant("one", nil)
	p.S.AwaitWarm(p.R, 2)
	p.Provision(one, "one", "before")
	rotated, halted, destroyed := p.Provision(one, "one", "rotated"), p.Provision(one, "one", "halted"), p.Provision(one, "one", "destroyed")
	p.Provision(one, "one", "renewed")
	p.Provision(one, "one", "woken")
	if _, err := one.Stop(ctx, "woken"); err != nil {
		t.Fatal(err)
	}
	p.S.AwaitWarm(p.R, 2)
	harness.Eventually(t, "the pool is full", func() error {
		entries, err := p.S.Pooled("past/")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.Ready() {
				return fmt.Errorf("%+v", e)
			}
		}
		if len(entries) < 3 {
			return fmt.Errorf("%d entries", len(entries))
		}
		return nil
	})
	backup := p.Snapshot()

	// What the backup does not know: the warm engines and pooled volumes of that time are
	// now used, first by a user who had another engine then, and by users of another
	// product.
	warm := p.S.WarmRows("past/")
	harness.Eventually(t, "a warm engine is claimed", func() error { // a busy machine may skip one
		if _, err := one.Destroy(ctx, "renewed"); err != nil {
			t.Fatal(err)
		}
		renewed := p.Provision(one, "one", "renewed")
		if !slices.ContainsFunc(warm, func(row *engine.Row) bool { return row.EngineID == renewed.Engine.EngineID }) {
			return fmt.Errorf("%s is none of the warm engines", renewed.Engine.EngineID)
		}
		return nil
	})
	two := p.Tenant("two", map[string]any{"max_engines": 9})
	for i := range 5 {
		p.Provision(one, "one", fmt.Sprint("since-", i))
		p.Provision(two, "two", fmt.Sprint("since-", i))
	}
	var err error
	for range 2 {
		if rotated.Engine.APIKey, err = one.RotateKey(ctx, "rotated"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = one.Stop(ctx, "halted"); err != nil {
		t.Fatal(err)
	}
	halted.Status = "stopped"
	if _, err = one.Start(ctx, "woken"); err != nil {
		t.Fatal(err)
	}
	if _, err = one.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	destroyed.Gone = true

	p.Restore(backup, stopped)
	// The first callers are other users, before the rebuild.
	for i := range 6 {
		user := fmt.Sprint("stranger-", i)
		harness.Eventually(t, user+" is served", func() error {
			two.BaseURL = p.R.URL
			_, err := two.Engine(ctx, user)
			var bad *client.Error
			if errors.As(err, &bad) && bad.Code == "INVALID_PLATFORM_KEY" {
				return err // the product is not rebuilt yet
			}
			return nil
		})
		if i < 3 {
			harness.Eventually(t, user+" is not kept waiting", func() error {
				a, err := two.Admit(ctx, user, client.AdmitOptions{AutoProvision: true})
				var bad *client.Error
				if errors.As(err, &bad) && bad.Status == 503 && bad.RetryAfter >= time.Second {
					return err
				}
				if err != nil || !a.Admitted {
					t.Fatalf("%s: %+v, %v", user, a, err)
				}
				e := a.Engine
				for _, word := range []string{e.EngineID, e.APIKey} {
					if whose := p.Seen[word]; whose != "" {
						t.Fatalf("%s was given what is %s's", user, whose)
					}
					p.Seen[word] = user
				}
				if m := harness.Export(t, e, e.APIKey); len(m.Memories) > 0 {
					t.Fatalf("%s was given a brain that knows %+v", user, m.Memories)
				}
				return nil
			})
		}
	}
	p.Whole()
	st, err := p.R.Admin().Registry(ctx)
	if err != nil || st.LastRecovery == nil || st.LastRecovery.Rebuilt < 10 || st.LastRecovery.Missing < 1 || st.LastRecovery.Products < 1 {
		t.Errorf("the last recovery is %+v, %v", st.LastRecovery, err)
	}
	t.Logf("rebuilt within %s: %+v", st.LastRecovery.EndedAt.Sub(st.LastRecovery.BeganAt), st.LastRecovery)
	// An engine whose brain is missing can only be destroyed.
	one.BaseURL = p.R.URL
	harness.WantCode(t, harness.ErrOf(one.Start(ctx, "destroyed")), 502, "ENGINE_BOOT_FAILED")
	if _, err := one.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	// A warm engine that is being created is in some of the lists only.
	harness.Eventually(t, "the stores agree", func() error {
		if got, warm := p.S.Census("past/"), len(p.S.WarmRows("past/")); got["quota"] != got["rows"]-warm || got["rows"] != got["engine-ids/"] {
			return fmt.Errorf("the stores hold %v, %d of them warm", got, warm)
		}
		return nil
	})
	// All engines can be destroyed, and then nothing remains.
	for who, o := range p.Known {
		if o.Gone {
			continue
		}
		if _, err := o.C.Destroy(ctx, o.User); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// A pass that reads a registry which was restored a moment ago does not act on it: it would
// end the process of an engine that was started since.
func TestRestoredUnderAPass(t *testing.T) {
	t.Parallel()
	p, ctx := harness.NewPast(t, map[string]string{"ORCH_RECONCILE_INTERVAL_S": "60"}), t.Context()
	o := p.Provision(p.Tenant("one", nil), "one", "u")
	for i := range 3 {
		if _, err := o.C.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		backup := p.Snapshot()
		if _, err := o.C.Start(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		restored := time.Now()
		p.Restore(backup, false)
		if err := p.R.Admin().Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the registry is rebuilt", func() error {
			st, err := p.R.Admin().Registry(ctx)
			if err == nil && (st.LastRecovery == nil || st.LastRecovery.EndedAt.Before(restored)) {
				err = fmt.Errorf("%+v", st.LastRecovery)
			}
			return err
		})
		p.Whole()
		e, err := o.C.Engine(ctx, "u")
		if err != nil {
			t.Fatal(err)
		}
		if m := harness.Export(t, e, e.APIKey); len(m.Runs) != i+2 {
			t.Fatalf("it ran %d times, want %d", len(m.Runs), i+2)
		}
	}
}

// A registry that is lost completely is rebuilt: products with their keys, engines with
// theirs, stopped engines as stopped.
func TestRegistryLost(t *testing.T) {
	t.Parallel()
	p := harness.NewPast(t, nil)
	ctx := t.Context()
	one, two := p.Tenant("one", map[string]any{"max_engines": 4}), p.Tenant("two", nil)
	for i := range 3 {
		p.Provision(one, "one", fmt.Sprint("user/", i))
		p.Provision(two, "two", fmt.Sprint("user/", i))
	}
	if _, err := one.Stop(ctx, "user/1"); err != nil {
		t.Fatal(err)
	}
	p.Known["one/user/1"].Status = "stopped"
	goneProduct := p.Tenant("gone", nil)
	products, err := p.R.Admin().Products(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, prod := range products.Products {
		if prod.Slug == "gone" {
			if err := p.R.Admin().DeleteProduct(ctx, prod.ProductID); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.R.Stop()
	if _, err := p.S.Consul.KV().DeleteTree("past/", nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.R = harness.StartService(t, p.Stack, p.Vars)
	var health struct{ Registry string }
	if err := p.R.Admin().Do(ctx, http.MethodGet, "/health", nil, &health); err != nil || health.Registry != "recovering" {
		t.Logf("health is %+v, %v", health, err) // it may be over already
	}
	p.Whole()
	t.Logf("everything is back after %s", time.Since(began).Round(100*time.Millisecond))
	p.Provision(one, "one", "fourth")
	goneProduct.BaseURL = p.R.URL
	harness.WantCode(t, harness.ErrOf(goneProduct.Engine(ctx, "x")), 401, "INVALID_PLATFORM_KEY")
	if _, err := one.Start(ctx, "user/1"); err != nil {
		t.Fatal(err)
	}
	p.Known["one/user/1"].Status = "running"
	p.Whole()
	harness.WantCode(t, harness.ErrOf(one.Provision(ctx, "b", "")), 429, "QUOTA_EXCEEDED")
}

// A row that was removed manually is rebuilt, and the admin can see why.
func TestRowRemovedByHand(t *testing.T) {
	t.Parallel()
	prefix := "row-removed/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	pid := harness.Export(t, e, e.APIKey).Runs[0].PID
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, key := range append(s.Rows(prefix), prefix+"engine-ids/"+e.EngineID) {
		if _, err := s.Consul.KV().Delete(key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "changes/00", Value: []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the engine is back", func() error {
		got, err := c.Engine(ctx, "u")
		if err != nil {
			return err
		}
		if got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	if m := harness.Export(t, e, e.APIKey); m.Knows("kept") != nil || len(m.Runs) != 1 || m.Runs[0].PID != pid {
		t.Errorf("its process or memory is another: %+v", m)
	}
	// A rebuild that meets another write is repeated, and audited again.
	recoveries := slices.DeleteFunc(r.Audited(t, "registry_recover"), func(e harness.AuditRow) bool { return e.Outcome == "ENGINE_BUSY" })
	if len(recoveries) != 1 || recoveries[0].Outcome != "ok" || fmt.Sprint(recoveries[0].Metadata["rebuilt"]) != "1" {
		t.Errorf("audited: %+v", recoveries)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	s.WantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// A row that names another user than the engine's secret discloses no key to anybody, and
// destroys nothing of the engine: its user gets it back.
func TestRowOfAStranger(t *testing.T) {
	t.Parallel()
	prefix := "stranger/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	e, err := c.Provision(ctx, "owner", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "the owner's")
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	// The registry names another user as the engine's owner.
	thief := rows[0]
	owner := s.Rows(prefix)[0]
	thief.UserID = "thief"
	s.PutRow(prefix, thief)
	if _, err := s.Consul.KV().Delete(owner, nil); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func() error{
		"GET":        func() error { return harness.ErrOf(c.Engine(ctx, "thief")) },
		"admit":      func() error { return harness.ErrOf(c.Admit(ctx, "thief", client.AdmitOptions{})) },
		"rotate-key": func() error { return harness.ErrOf(c.RotateKey(ctx, "thief")) },
		"snapshot":   func() error { return harness.ErrOf(c.Snapshot(ctx, "thief", "")) },
		"restore":    func() error { return harness.ErrOf(c.Restore(ctx, "thief", "")) },
		"fork":       func() error { return harness.ErrOf(c.Fork(ctx, "thief", "another", "")) },
	} {
		t.Run(what, func(t *testing.T) { harness.WantCode(t, call(), 409, "ENGINE_QUARANTINED") })
	}
	harness.Eventually(t, "the admin sees it", func() error {
		list, err := r.Admin().Quarantine(ctx)
		if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != e.EngineID || list.Engines[0].UserID != "owner" {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	harness.Eventually(t, "it is audited", func() error {
		rows := r.Audited(t, "quarantine")
		if !slices.ContainsFunc(rows, func(row harness.AuditRow) bool { return row.EngineID == e.EngineID && row.Outcome == "ok" }) {
			return fmt.Errorf("%+v", rows)
		}
		return nil
	})
	got, err := r.Admin().Adopt(ctx, e.EngineID, "", "")
	if err != nil || got.UserID != "owner" {
		t.Fatalf("%+v, %v", got, err)
	}
	harness.Eventually(t, "the owner has it again", func() error {
		got, err := c.Engine(ctx, "owner")
		if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
			return fmt.Errorf("%+v, %w", got, err)
		}
		return harness.Export(t, got, got.APIKey).Knows("the owner's")
	})
	harness.WantCode(t, harness.ErrOf(c.Engine(ctx, "thief")), 404, "ENGINE_NOT_FOUND")
	if list, err := r.Admin().Quarantine(ctx); err != nil || len(list.Engines) > 0 {
		t.Errorf("%+v, %v", list, err)
	}

	t.Run("Stopped", func(t *testing.T) {
		if _, err := c.Stop(ctx, "owner"); err != nil {
			t.Fatal(err)
		}
		rows, err := s.Engines(prefix)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		theirs := *rows[0]
		theirs.UserID = "thief"
		s.PutRow(prefix, &theirs)
		harness.WantCode(t, harness.ErrOf(c.Start(ctx, "thief")), 409, "ENGINE_QUARANTINED")
		thiefRow := slices.DeleteFunc(s.Rows(prefix), func(key string) bool {
			return !strings.HasSuffix(key, base64.RawURLEncoding.EncodeToString([]byte("thief")))
		})
		if len(thiefRow) != 1 {
			t.Fatalf("rows %v", thiefRow)
		}
		if _, err := s.Consul.KV().Delete(thiefRow[0], nil); err != nil {
			t.Fatal(err)
		}
		s.PutRow(prefix, rows[0])
		harness.Eventually(t, "it starts for its owner", func() error { return harness.ErrOf(c.Start(ctx, "owner")) })
	})
	t.Run("DestroyedByTheStranger", func(t *testing.T) {
		rows, err := s.Engines(prefix)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		thief, owner := rows[0], s.Rows(prefix)[0]
		thief.UserID = "thief"
		s.PutRow(prefix, thief)
		if _, err := s.Consul.KV().Delete(owner, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Destroy(ctx, "thief"); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "the owner has it again", func() error {
			got, err := c.Engine(ctx, "owner")
			if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
				return fmt.Errorf("%+v, %w", got, err)
			}
			return harness.Export(t, got, got.APIKey).Knows("the owner's")
		})
	})
}

// An admin's decision about an engine covers all rows that name it, although no pass and no
// view has seen them yet.
func TestDecisionAboutUnseenRows(t *testing.T) {
	t.Parallel()
	prefix := "unseen-row/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "3600"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	for user, decide := range map[string]func(engineID string) error{
		"adopt":   func(id string) error { return harness.ErrOf(r.Admin().Adopt(ctx, id, "", "")) },
		"discard": func(id string) error { return r.Admin().Discard(ctx, id) },
	} {
		t.Run(user, func(t *testing.T) {
			e, err := c.Provision(ctx, user, "")
			if err != nil {
				t.Fatal(err)
			}
			rows, err := s.Engines(prefix)
			i := slices.IndexFunc(rows, func(row *engine.Row) bool { return row.UserID == user })
			if err != nil || i < 0 {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			for _, stranger := range []string{"first-stranger", "second-stranger"} {
				theirs := *rows[i]
				theirs.UserID = stranger + "-to-" + user
				value, err := json.Marshal(theirs)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "engines/" + harness.RowNameOf(&theirs), Value: value}, nil); err != nil {
					t.Fatal(err)
				}
			}
			first, second := "first-stranger-to-"+user, "second-stranger-to-"+user
			harness.WantCode(t, harness.ErrOf(c.Engine(ctx, first)), 409, "ENGINE_QUARANTINED")
			harness.Eventually(t, "the admin sees it", func() error {
				list, err := r.Admin().Quarantine(ctx)
				if err != nil || len(list.Engines) != 1 {
					return fmt.Errorf("%+v, %w", list, err)
				}
				return nil
			})
			if err := decide(e.EngineID); err != nil {
				t.Fatal(err)
			}
			for _, stranger := range []string{first, second} {
				got, err := c.Engine(ctx, stranger)
				if user == "adopt" {
					harness.WantCode(t, err, 404, "ENGINE_NOT_FOUND")
				} else if err != nil || got.Status != "failed" || got.APIKey != "" {
					t.Errorf("%+v, %v", got, err)
				}
			}
			if list, err := r.Admin().Quarantine(ctx); err != nil || len(list.Engines) > 0 {
				t.Errorf("%+v, %v", list, err)
			}
		})
	}
}

// A retried provision does not return a key whose secret names another owner.
func TestAnswerOfAStranger(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"ORCH_CONSUL_PREFIX": "answer-of-a-stranger/", "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "3600", "ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db")}
	prefix := vars["ORCH_CONSUL_PREFIX"]
	r := harness.StartService(t, harness.Shared, vars)
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	e, err := harness.ProvisionOnce(ctx, c, "once", "u", "")
	if err != nil {
		t.Fatal(err)
	}
	r.Stop() // it has cached the key
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if _, err := s.Vault.Logical().Delete(harness.MountName(prefix) + "/metadata/engines/" + e.EngineID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Vault.KVv2(harness.MountName(prefix)).Put(ctx, "engines/"+e.EngineID, map[string]any{
		"api_key": e.APIKey, "key_id": rows[0].KeyID,
		"owner": map[string]any{"deployment": s.Deployment(prefix).ID, "product_id": rows[0].ProductID, "user_id": "somebody", "engine_id": e.EngineID},
	})
	if err != nil {
		t.Fatal(err)
	}
	r = harness.StartService(t, harness.Shared, vars)
	c.BaseURL = r.URL
	harness.WantCode(t, harness.ErrOf(harness.ProvisionOnce(ctx, c, "once", "u", "")), 409, "ENGINE_QUARANTINED")
	harness.Eventually(t, "the admin can discard it", func() error { return r.Admin().Discard(ctx, e.EngineID) })
	if got, err := c.Engine(ctx, "u"); err != nil || got.Reason != "brain_missing" || got.APIKey != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	left := slices.DeleteFunc(s.Traces(e.EngineID), func(what string) bool { return strings.Contains(what, "/idempotency/") })
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// While a registry cannot be rebuilt because a list cannot be read, every change waits, and
// then fails with the reason; users of running engines are admitted. Once it can be
// rebuilt, everything continues.
func TestRegistryRecovering(t *testing.T) {
	t.Parallel()
	prefix := "recovering/"
	way, refused := consulWithout(t, prefix+"graves/")
	r := harness.StartService(t, harness.Shared, map[string]string{"CONSUL_HTTP_ADDR": way, "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Provision(ctx, "stopped", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	quarantined := engineIDOf(e.EngineID[:6])
	mustPut := func(key, value string) {
		t.Helper()
		if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	refused.Store(true)
	mustPut("quarantine/"+quarantined, `{"engine_id": "`+quarantined+`", "why": "a test"}`)
	if err := r.Admin().RecoverRegistry(ctx); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"provision":            func() error { return harness.ErrOf(c.Provision(ctx, "new", "")) },
		"admit":                func() error { return harness.ErrOf(c.Admit(ctx, "new", client.AdmitOptions{AutoProvision: true})) },
		"start":                func() error { return harness.ErrOf(c.Start(ctx, "stopped")) },
		"stop":                 func() error { return harness.ErrOf(c.Stop(ctx, "u")) },
		"rotate-key":           func() error { return harness.ErrOf(c.RotateKey(ctx, "u")) },
		"destroy":              func() error { return harness.ErrOf(c.Destroy(ctx, "u")) },
		"snapshot":             func() error { return harness.ErrOf(c.Snapshot(ctx, "u", "")) },
		"restore":              func() error { return harness.ErrOf(c.Restore(ctx, "u", "")) },
		"fork":                 func() error { return harness.ErrOf(c.Fork(ctx, "u", "forked", "")) },
		"delete of a snapshot": func() error { return c.DeleteSnapshot(ctx, "u", "no-such-snapshot") },
		"rekey":                func() error { return harness.ErrOf(r.Admin().Rekey(ctx)) },
		"adopt":                func() error { return harness.ErrOf(r.Admin().Adopt(ctx, quarantined, "", "")) },
		"discard":              func() error { return r.Admin().Discard(ctx, quarantined) },
		"stored engines":       func() error { return harness.ErrOf(r.Admin().StoredEngines(ctx, client.SnapshotPage{})) },
		"import":               func() error { return harness.ErrOf(r.Admin().Import(ctx, quarantined, "")) },
		"adoptNode":            func() error { return harness.ErrOf(r.Admin().AdoptNode(ctx, "a", "b", false)) },
		"evacuateNode":         func() error { return harness.ErrOf(r.Admin().Evacuate(ctx, "a")) },
		"cancelEvacuation":     func() error { return harness.ErrOf(r.Admin().CancelEvacuation(ctx, "a")) },
	}
	t.Run("Calls", func(t *testing.T) {
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				harness.WantCode(t, call(), 503, "REGISTRY_RECOVERING")
			})
		}
	})
	if a, err := c.Admit(ctx, "u", client.AdmitOptions{}); err != nil || !a.Admitted || a.Engine.APIKey != e.APIKey {
		t.Errorf("an admit of a running engine: %+v, %v", a, err)
	}
	st, err := r.Admin().Registry(ctx)
	if err != nil || st.State != "recovering" || st.Why == "" || st.Quarantined != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	var health struct{ Status, Registry string }
	if err := r.Admin().Do(ctx, http.MethodGet, "/health", nil, &health); err != nil || health.Registry != "recovering" || health.Status != "ok" {
		t.Errorf("%+v, %v", health, err)
	}
	if err := (&client.Client{BaseURL: r.URL}).Ready(ctx); err != nil {
		t.Errorf("it is not ready: %v", err)
	}
	refused.Store(false)
	harness.Eventually(t, "the registry is whole again", func() error { return harness.ErrOf(c.RotateKey(ctx, "u")) })
	harness.Eventually(t, "a quarantine without remains is removed", func() error {
		list, err := r.Admin().Quarantine(ctx)
		if err != nil || len(list.Engines) > 0 {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	plan, err := r.Admin().PlanRecovery(ctx)
	if err != nil || len(plan) > 0 {
		t.Errorf("a recovery would %+v, %v", plan, err)
	}
	for _, user := range []string{"u", "stopped"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}
