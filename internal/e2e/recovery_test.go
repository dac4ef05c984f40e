package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/registry"
)

// past is one deployment whose registry can be put back in time.
type past struct {
	t     *testing.T
	stack *devstack.Stack
	s     *stores
	vars  map[string]string
	r     *replica
	known map[string]*owned // by product and user
	seen  map[string]string // whose each engine_id and key is
}

// owned is what a user was told, and told its engine.
type owned struct {
	c       *client.Client
	product string
	user    string
	engine  *client.Engine
	memory  string
	status  string // the engine is to be in, once all is rebuilt
	gone    bool   // it was destroyed
}

func newPast(t *testing.T, vars map[string]string) *past {
	t.Helper()
	stack := ownStack(t)
	all := map[string]string{
		"ORCH_CONSUL_PREFIX": "past/", "ORCH_VOLUME_POOL": "3", "ORCH_RECONCILE_INTERVAL_S": "2", "ORCH_ORPHAN_GRACE_S": "2",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}
	for k, v := range vars {
		all[k] = v
	}
	p := &past{t: t, stack: stack, s: openStores(t, stack), vars: all, known: map[string]*owned{}, seen: map[string]string{}}
	p.r = startService(t, stack, all)
	return p
}

// tenant registers a product.
func (p *past) tenant(slug string, policy map[string]any) *client.Client {
	p.t.Helper()
	made, err := p.r.admin().RegisterProduct(p.t.Context(), slug, slug, policyOf(p.t, policy))
	if err != nil {
		p.t.Fatal(err)
	}
	return &client.Client{BaseURL: p.r.url, PlatformKey: made.PlatformAPIKey}
}

// provision makes a user an engine and tells it something. What anybody was given
// before must not be given to it.
func (p *past) provision(c *client.Client, product, user string) *owned {
	p.t.Helper()
	c.BaseURL = p.r.url
	e, err := c.Provision(p.t.Context(), user, "")
	if err != nil {
		p.t.Fatalf("provision of %s/%s: %v", product, user, err)
	}
	who := product + "/" + user
	for _, word := range []string{e.EngineID, e.APIKey} {
		if whose := p.seen[word]; whose != "" {
			p.t.Fatalf("%s was given %s, which is %s's", who, word, whose)
		}
		p.seen[word] = who
	}
	if m := export(p.t, e, e.APIKey); len(m.Memories) > 0 {
		p.t.Fatalf("%s was given a brain that knows %+v", who, m.Memories)
	}
	o := &owned{c: c, product: product, user: user, engine: e, memory: "the secret of " + who, status: "running"}
	remember(p.t, e, e.APIKey, o.memory)
	p.known[who] = o
	return o
}

// snapshot is what Consul has now.
func (p *past) snapshot() []byte {
	p.t.Helper()
	in, _, err := p.s.consul.Snapshot().Save(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	b, err := io.ReadAll(in)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// restore puts Consul back to a snapshot; while is what happens to the service
// around it: it is stopped, as the manual says, or not.
func (p *past) restore(snapshot []byte, stopped bool) {
	p.t.Helper()
	if stopped {
		p.r.stop()
	}
	if err := p.s.consul.Snapshot().Restore(nil, bytes.NewReader(snapshot)); err != nil {
		p.t.Fatal(err)
	}
	if stopped {
		p.r = startService(p.t, p.stack, p.vars)
	}
}

// whole waits until the registry says that it was rebuilt, and then that everything
// is as its users know it.
func (p *past) whole() {
	p.t.Helper()
	eventually(p.t, "the registry is rebuilt", func() error {
		st, err := p.r.admin().Registry(p.t.Context())
		if err != nil {
			return err
		}
		if st.State != "ok" || st.Quarantined != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	for who, o := range p.known {
		eventually(p.t, who+" has its engine again", func() error { return p.has(o) })
	}
	rows, err := p.s.engines(p.vars["ORCH_CONSUL_PREFIX"])
	if err != nil {
		p.t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, row := range rows {
		if ids[row.EngineID] {
			p.t.Errorf("two rows name engine %s", row.EngineID)
		}
		ids[row.EngineID] = true
	}
}

// has says what a user's engine is not as it should be.
func (p *past) has(o *owned) error {
	o.c.BaseURL = p.r.url
	got, err := o.c.Engine(p.t.Context(), o.user)
	var bad *client.Error
	if o.gone {
		if errors.As(err, &bad) && bad.Code == "ENGINE_NOT_FOUND" {
			return nil
		}
		if err == nil && got.Status == "failed" && got.Reason == "brain_missing" && got.APIKey == "" {
			return nil
		}
		return fmt.Errorf("it was destroyed and is %+v, %w", got, err)
	}
	if err != nil {
		return err
	}
	if got.EngineID != o.engine.EngineID || got.APIKey != o.engine.APIKey || got.Status != o.status || !got.CreatedAt.Equal(o.engine.CreatedAt) && !o.engine.CreatedAt.IsZero() {
		return fmt.Errorf("it is %+v, it was %+v", got, o.engine)
	}
	if o.status != "running" {
		return nil
	}
	return export(p.t, got, o.engine.APIKey).knows(o.memory)
}

// A registry that is restored from a backup which is older than some provisions,
// destroys and rotations loses nothing and mixes nobody up: with the service stopped
// as the manual says, and under its feet.
func TestRegistryRestored(t *testing.T) {
	t.Parallel()
	for name, stopped := range map[string]bool{"Stopped": true, "Running": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testRegistryRestored(t, stopped)
		})
	}
}

func testRegistryRestored(t *testing.T, stopped bool) {
	p := newPast(t, map[string]string{"ORCH_WARM_POOL": "2"})
	ctx := t.Context()
	one := p.tenant("one", nil)
	p.s.awaitWarm(p.r, 2)
	p.provision(one, "one", "before")
	rotated, halted, destroyed := p.provision(one, "one", "rotated"), p.provision(one, "one", "halted"), p.provision(one, "one", "destroyed")
	p.provision(one, "one", "renewed")
	p.provision(one, "one", "woken")
	if _, err := one.Stop(ctx, "woken"); err != nil {
		t.Fatal(err)
	}
	p.s.awaitWarm(p.r, 2)
	eventually(t, "the pool is full", func() error {
		entries, err := p.s.pooled("past/")
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
	backup := p.snapshot()

	// What the backup does not know: the warm engines and pooled volumes of then are
	// taken, first by a user who had another engine then, and by users of another product.
	if _, err := one.Destroy(ctx, "renewed"); err != nil {
		t.Fatal(err)
	}
	warm := p.s.warmRows("past/")
	renewed := p.provision(one, "one", "renewed")
	if !slices.ContainsFunc(warm, func(row *registry.Engine) bool { return row.EngineID == renewed.engine.EngineID }) {
		t.Errorf("%s is none of the warm engines", renewed.engine.EngineID)
	}
	two := p.tenant("two", map[string]any{"max_engines": 9})
	for i := range 5 {
		p.provision(one, "one", fmt.Sprint("since-", i))
		p.provision(two, "two", fmt.Sprint("since-", i))
	}
	var err error
	for range 2 {
		if rotated.engine.APIKey, err = one.RotateKey(ctx, "rotated"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = one.Stop(ctx, "halted"); err != nil {
		t.Fatal(err)
	}
	halted.status = "stopped"
	if _, err = one.Start(ctx, "woken"); err != nil {
		t.Fatal(err)
	}
	if _, err = one.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	destroyed.gone = true

	p.restore(backup, stopped)
	// The first to come are strangers. Nobody waits for the rebuild here.
	for i := range 6 {
		user := fmt.Sprint("stranger-", i)
		eventually(t, user+" is served", func() error {
			two.BaseURL = p.r.url
			_, err := two.Engine(ctx, user)
			var bad *client.Error
			if errors.As(err, &bad) && bad.Code == "INVALID_PLATFORM_KEY" {
				return err // the product is not rebuilt yet
			}
			return nil
		})
		if i < 3 {
			eventually(t, user+" is not kept waiting", func() error {
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
					if whose := p.seen[word]; whose != "" {
						t.Fatalf("%s was given what is %s's", user, whose)
					}
					p.seen[word] = user
				}
				if m := export(t, e, e.APIKey); len(m.Memories) > 0 {
					t.Fatalf("%s was given a brain that knows %+v", user, m.Memories)
				}
				return nil
			})
		}
	}
	p.whole()
	st, err := p.r.admin().Registry(ctx)
	if err != nil || st.LastRecovery == nil || st.LastRecovery.Rebuilt < 10 || st.LastRecovery.Missing < 1 || st.LastRecovery.Products < 1 {
		t.Errorf("the last recovery says %+v, %v", st.LastRecovery, err)
	}
	t.Logf("rebuilt within %s: %+v", st.LastRecovery.EndedAt.Sub(st.LastRecovery.BeganAt), st.LastRecovery)
	// What is gone can only be destroyed.
	one.BaseURL = p.r.url
	wantCode(t, second(one.Start(ctx, "destroyed")), 502, "ENGINE_BOOT_FAILED")
	if _, err := one.Destroy(ctx, "destroyed"); err != nil {
		t.Fatal(err)
	}
	if got, warm := p.s.census("past/"), len(p.s.warmRows("past/")); got["quota"] != got["rows"]-warm || got["rows"] != got["engine-ids/"] {
		t.Errorf("the stores hold %v, %d of them warm", got, warm)
	}
	// Everybody can be destroyed, and then nothing is left.
	for who, o := range p.known {
		if o.gone {
			continue
		}
		if _, err := o.c.Destroy(ctx, o.user); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// A pass that reads a registry which was restored a moment ago acts on none of it: it
// would end the process of an engine that was started since.
func TestRestoredUnderAPass(t *testing.T) {
	t.Parallel()
	p, ctx := newPast(t, map[string]string{"ORCH_RECONCILE_INTERVAL_S": "60"}), t.Context()
	o := p.provision(p.tenant("one", nil), "one", "u")
	for i := range 3 {
		if _, err := o.c.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		backup := p.snapshot()
		if _, err := o.c.Start(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		restored := time.Now()
		p.restore(backup, false)
		if err := p.r.admin().Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the registry is rebuilt", func() error {
			st, err := p.r.admin().Registry(ctx)
			if err == nil && (st.LastRecovery == nil || st.LastRecovery.EndedAt.Before(restored)) {
				err = fmt.Errorf("%+v", st.LastRecovery)
			}
			return err
		})
		p.whole()
		e, err := o.c.Engine(ctx, "u")
		if err != nil {
			t.Fatal(err)
		}
		if m := export(t, e, e.APIKey); len(m.Runs) != i+2 {
			t.Fatalf("it ran %d times, want %d", len(m.Runs), i+2)
		}
	}
}

// A registry that is lost as a whole is rebuilt: products with their keys, engines
// with theirs, stopped ones stopped.
func TestRegistryLost(t *testing.T) {
	t.Parallel()
	p := newPast(t, nil)
	ctx := t.Context()
	one, two := p.tenant("one", map[string]any{"max_engines": 4}), p.tenant("two", nil)
	for i := range 3 {
		p.provision(one, "one", fmt.Sprint("user/", i))
		p.provision(two, "two", fmt.Sprint("user/", i))
	}
	if _, err := one.Stop(ctx, "user/1"); err != nil {
		t.Fatal(err)
	}
	p.known["one/user/1"].status = "stopped"
	goneProduct := p.tenant("gone", nil)
	products, err := p.r.admin().Products(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, prod := range products.Products {
		if prod.Slug == "gone" {
			if err := p.r.admin().DeleteProduct(ctx, prod.ProductID); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.r.stop()
	if _, err := p.s.consul.KV().DeleteTree("past/", nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.r = startService(t, p.stack, p.vars)
	var health struct{ Registry string }
	if err := p.r.admin().Do(ctx, http.MethodGet, "/health", nil, &health); err != nil || health.Registry != "recovering" {
		t.Logf("health says %+v, %v", health, err) // it may be over already
	}
	p.whole()
	t.Logf("everything is back after %s", time.Since(began).Round(100*time.Millisecond))
	p.provision(one, "one", "fourth")
	goneProduct.BaseURL = p.r.url
	wantCode(t, second(goneProduct.Engine(ctx, "x")), 401, "INVALID_PLATFORM_KEY")
	if _, err := one.Start(ctx, "user/1"); err != nil {
		t.Fatal(err)
	}
	p.known["one/user/1"].status = "running"
	p.whole()
	wantCode(t, second(one.Provision(ctx, "b", "")), 429, "QUOTA_EXCEEDED")
}

// One row that a hand removed comes back, and the admin can see why.
func TestRowRemovedByHand(t *testing.T) {
	t.Parallel()
	prefix := "row-removed/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := openStores(t, shared), t.Context()
	c := r.product(t, nil)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "kept")
	pid := export(t, e, e.APIKey).Runs[0].PID
	rows, err := s.engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, key := range append(s.rows(prefix), prefix+"engine-ids/"+e.EngineID) {
		if _, err := s.consul.KV().Delete(key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + "changes/00", Value: []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the engine is back", func() error {
		got, err := c.Engine(ctx, "u")
		if err != nil {
			return err
		}
		if got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	if m := export(t, e, e.APIKey); m.knows("kept") != nil || len(m.Runs) != 1 || m.Runs[0].PID != pid {
		t.Errorf("its process or memory is another: %+v", m)
	}
	// One that meets another write is made again, and audited again.
	recoveries := slices.DeleteFunc(r.audited(t, "registry_recover"), func(e auditRow) bool { return e.Outcome == "ENGINE_BUSY" })
	if len(recoveries) != 1 || recoveries[0].Outcome != "ok" || fmt.Sprint(recoveries[0].Metadata["rebuilt"]) != "1" {
		t.Errorf("audited: %+v", recoveries)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	s.wantCensus(prefix, map[string]int{"rows": 0, "engine-ids/": 0, "graves/": 0, "quota": 0, "variables": 0})
}

// A row that names another user than the engine's secret discloses no key to anybody
// and destroys nothing of the engine's: its user gets it back.
func TestRowOfAStranger(t *testing.T) {
	t.Parallel()
	prefix := "stranger/"
	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := openStores(t, shared), t.Context()
	c := r.product(t, nil)
	e, err := c.Provision(ctx, "owner", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "the owner's")
	rows, err := s.engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	// The registry says that the engine is a stranger's.
	thief := rows[0]
	owner := s.rows(prefix)[0]
	thief.UserID = "thief"
	s.putRow(prefix, thief)
	if _, err := s.consul.KV().Delete(owner, nil); err != nil {
		t.Fatal(err)
	}
	for what, call := range map[string]func() error{
		"GET":        func() error { return second(c.Engine(ctx, "thief")) },
		"admit":      func() error { return second(c.Admit(ctx, "thief", client.AdmitOptions{})) },
		"rotate-key": func() error { return second(c.RotateKey(ctx, "thief")) },
	} {
		t.Run(what, func(t *testing.T) { wantCode(t, call(), 409, "ENGINE_QUARANTINED") })
	}
	eventually(t, "the admin sees it", func() error {
		list, err := r.admin().Quarantine(ctx)
		if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != e.EngineID || list.Engines[0].UserID != "owner" {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	if !slices.ContainsFunc(r.audited(t, "quarantine"), func(row auditRow) bool { return row.EngineID == e.EngineID && row.Outcome == "ok" }) {
		t.Error("it is not audited")
	}
	got, err := r.admin().Adopt(ctx, e.EngineID, "", "")
	if err != nil || got.UserID != "owner" {
		t.Fatalf("%+v, %v", got, err)
	}
	eventually(t, "the owner has it again", func() error {
		got, err := c.Engine(ctx, "owner")
		if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
			return fmt.Errorf("%+v, %w", got, err)
		}
		return export(t, got, got.APIKey).knows("the owner's")
	})
	wantCode(t, second(c.Engine(ctx, "thief")), 404, "ENGINE_NOT_FOUND")
	if list, err := r.admin().Quarantine(ctx); err != nil || len(list.Engines) > 0 {
		t.Errorf("%+v, %v", list, err)
	}

	t.Run("Stopped", func(t *testing.T) {
		if _, err := c.Stop(ctx, "owner"); err != nil {
			t.Fatal(err)
		}
		rows, err := s.engines(prefix)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		theirs := *rows[0]
		theirs.UserID = "thief"
		s.putRow(prefix, &theirs)
		wantCode(t, second(c.Start(ctx, "thief")), 409, "ENGINE_QUARANTINED")
		thiefRow := slices.DeleteFunc(s.rows(prefix), func(key string) bool {
			return !strings.HasSuffix(key, base64.RawURLEncoding.EncodeToString([]byte("thief")))
		})
		if len(thiefRow) != 1 {
			t.Fatalf("rows %v", thiefRow)
		}
		if _, err := s.consul.KV().Delete(thiefRow[0], nil); err != nil {
			t.Fatal(err)
		}
		s.putRow(prefix, rows[0])
		eventually(t, "it starts for its owner", func() error { return second(c.Start(ctx, "owner")) })
	})
	t.Run("DestroyedByTheStranger", func(t *testing.T) {
		rows, err := s.engines(prefix)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		thief, owner := rows[0], s.rows(prefix)[0]
		thief.UserID = "thief"
		s.putRow(prefix, thief)
		if _, err := s.consul.KV().Delete(owner, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Destroy(ctx, "thief"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the owner has it again", func() error {
			got, err := c.Engine(ctx, "owner")
			if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
				return fmt.Errorf("%+v, %w", got, err)
			}
			return export(t, got, got.APIKey).knows("the owner's")
		})
	})
}

// A provision that is asked for once more is not answered with a key that its secret
// says is somebody else's.
func TestAnswerOfAStranger(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"ORCH_CONSUL_PREFIX": "answer-of-a-stranger/", "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "3600", "ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db")}
	prefix := vars["ORCH_CONSUL_PREFIX"]
	r := startService(t, shared, vars)
	s, ctx := openStores(t, shared), t.Context()
	c := r.product(t, nil)
	e, err := provisionOnce(ctx, c, "once", "u", "")
	if err != nil {
		t.Fatal(err)
	}
	r.stop() // it has the key in memory
	rows, err := s.engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if _, err := s.vault.Logical().Delete(mountName(prefix) + "/metadata/engines/" + e.EngineID); err != nil {
		t.Fatal(err)
	}
	_, err = s.vault.KVv2(mountName(prefix)).Put(ctx, "engines/"+e.EngineID, map[string]any{
		"api_key": e.APIKey, "key_id": rows[0].KeyID,
		"owner": map[string]any{"deployment": s.deployment(prefix).ID, "product_id": rows[0].ProductID, "user_id": "somebody", "engine_id": e.EngineID},
	})
	if err != nil {
		t.Fatal(err)
	}
	r = startService(t, shared, vars)
	c.BaseURL = r.url
	wantCode(t, second(provisionOnce(ctx, c, "once", "u", "")), 409, "ENGINE_QUARANTINED")
	eventually(t, "the admin can discard it", func() error { return r.admin().Discard(ctx, e.EngineID) })
	if got, err := c.Engine(ctx, "u"); err != nil || got.Reason != "brain_missing" || got.APIKey != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	left := slices.DeleteFunc(s.traces(e.EngineID), func(what string) bool { return strings.Contains(what, "/idempotency/") })
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// rowNameOf is the name of a row below engines/.
func rowNameOf(row *registry.Engine) string {
	sum := sha256.Sum256([]byte(row.ProductID + "\x00" + row.UserID))
	return hex.EncodeToString(sum[:1]) + "/" + row.ProductID + "/" + base64.RawURLEncoding.EncodeToString([]byte(row.UserID))
}

// putRow writes a row behind the service's back, with its index.
func (s *stores) putRow(prefix string, row *registry.Engine) {
	s.t.Helper()
	key := rowNameOf(row)
	value, err := json.Marshal(row)
	if err != nil {
		s.t.Fatal(err)
	}
	for k, v := range map[string][]byte{"engines/" + key: value, "engine-ids/" + row.EngineID: []byte("engines/" + key), "changes/" + key[:2]: []byte(row.EngineID + "@hand")} {
		if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + k, Value: v}, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

// A registry that cannot be rebuilt, for a list cannot be read, keeps every change
// waiting, and then says why; running engines are admitted. Once it can be, all goes
// on.
func TestRegistryRecovering(t *testing.T) {
	t.Parallel()
	prefix := "recovering/"
	way, refused := consulWithout(t, prefix+"graves/")
	r := startService(t, shared, map[string]string{"CONSUL_HTTP_ADDR": way, "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"})
	s, ctx := openStores(t, shared), t.Context()
	c := r.product(t, nil)
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
		if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	refused.Store(true)
	mustPut("quarantine/"+quarantined, `{"engine_id": "`+quarantined+`", "why": "a test"}`)
	if err := r.admin().RecoverRegistry(ctx); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"provision":  func() error { return second(c.Provision(ctx, "new", "")) },
		"admit":      func() error { return second(c.Admit(ctx, "new", client.AdmitOptions{AutoProvision: true})) },
		"start":      func() error { return second(c.Start(ctx, "stopped")) },
		"stop":       func() error { return second(c.Stop(ctx, "u")) },
		"rotate-key": func() error { return second(c.RotateKey(ctx, "u")) },
		"destroy":    func() error { return second(c.Destroy(ctx, "u")) },
		"rekey":      func() error { return second(r.admin().Rekey(ctx)) },
		"adopt":      func() error { return second(r.admin().Adopt(ctx, quarantined, "", "")) },
		"discard":    func() error { return r.admin().Discard(ctx, quarantined) },
		"adoptNode":  func() error { return second(r.admin().AdoptNode(ctx, "a", "b", false)) },
	}
	t.Run("Calls", func(t *testing.T) {
		for name, call := range calls {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				wantCode(t, call(), 503, "REGISTRY_RECOVERING")
			})
		}
	})
	if a, err := c.Admit(ctx, "u", client.AdmitOptions{}); err != nil || !a.Admitted || a.Engine.APIKey != e.APIKey {
		t.Errorf("an admit of a running engine: %+v, %v", a, err)
	}
	st, err := r.admin().Registry(ctx)
	if err != nil || st.State != "recovering" || st.Why == "" || st.Quarantined != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	var health struct{ Status, Registry string }
	if err := r.admin().Do(ctx, http.MethodGet, "/health", nil, &health); err != nil || health.Registry != "recovering" || health.Status != "ok" {
		t.Errorf("%+v, %v", health, err)
	}
	if err := (&client.Client{BaseURL: r.url}).Ready(ctx); err != nil {
		t.Errorf("it is not ready: %v", err)
	}
	refused.Store(false)
	eventually(t, "the registry is whole again", func() error { return second(c.RotateKey(ctx, "u")) })
	eventually(t, "a quarantine of which nothing is left goes", func() error {
		list, err := r.admin().Quarantine(ctx)
		if err != nil || len(list.Engines) > 0 {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	plan, err := r.admin().PlanRecovery(ctx)
	if err != nil || len(plan) > 0 {
		t.Errorf("a recovery would %+v, %v", plan, err)
	}
	for _, user := range []string{"u", "stopped"} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}
