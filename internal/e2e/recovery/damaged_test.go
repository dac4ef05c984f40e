package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/secrets"
)

// rubbish is the value that an interrupted write leaves.
const rubbish = `{"trunc`

// damage is a deployment whose registry is damaged key by key.
type damage struct {
	t      *testing.T
	s      *harness.Stores
	r      *harness.Replica
	prefix string

	harmed, neighbour *client.Client
	product           string // the id of the damaged product
	engine            *client.Engine
	users             int
}

func newDamage(t *testing.T, prefix string, vars map[string]string) *damage {
	t.Helper()
	all := map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "4", "ORCH_RECONCILE_INTERVAL_S": "2", "ORCH_ORPHAN_GRACE_S": "3600",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}
	for k, v := range vars {
		all[k] = v
	}
	d := &damage{t: t, s: harness.OpenStores(t, harness.Shared), r: harness.StartService(t, harness.Shared, all), prefix: prefix}
	d.harmed = d.r.Product(t, map[string]any{"rate_limit_rpm": 100_000})
	d.product = harness.ProductOf(t, d.r.Admin(), d.harmed)
	d.neighbour = d.r.Product(t, nil)
	var err error
	if d.engine, err = harness.ProvisionOnce(t.Context(), d.harmed, "once", "u", ""); err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, d.engine, d.engine.APIKey, "before the damage")
	return d
}

// below returns the only key below a part of the registry whose name or value contains all
// words.
func (d *damage) below(part string, words ...string) string {
	d.t.Helper()
	pairs, _, err := d.s.Consul.KV().List(d.prefix+part, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range pairs {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.Key+string(p.Value), w) }) {
			return p.Key
		}
	}
	d.t.Fatalf("nothing below %s has %v", part, words)
	return ""
}

func (d *damage) write(key, value string) {
	d.t.Helper()
	pair, _, err := d.s.Consul.KV().Get(key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	next := &consul.KVPair{Key: key, Value: []byte(value)}
	if pair != nil {
		next.Flags = pair.Flags
	}
	if _, err := d.s.Consul.KV().Put(next, nil); err != nil {
		d.t.Fatal(err)
	}
}

func (d *damage) remove(key string) {
	d.t.Helper()
	if _, err := d.s.Consul.KV().Delete(key, nil); err != nil {
		d.t.Fatal(err)
	}
}

func (d *damage) value(key string) string {
	d.t.Helper()
	pair, _, err := d.s.Consul.KV().Get(key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	if pair == nil {
		return ""
	}
	return string(pair.Value)
}

// life runs a new engine of the other product through its life.
func (d *damage) life(ctx context.Context) error {
	d.users++
	user := fmt.Sprint("n", d.users)
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"provision", func() error { return harness.ErrOf(d.neighbour.Provision(ctx, user, "")) }},
		{"admit", func() error {
			a, err := harness.Admit(ctx, d.neighbour, user, false, false)
			if err == nil && !a.Admitted {
				err = fmt.Errorf("denied: %s", a.Reason)
			}
			return err
		}},
		{"stop", func() error { return harness.ErrOf(d.neighbour.Stop(ctx, user)) }},
		{"start", func() (err error) {
			// Other tests use the same node: a port that Nomad gave twice shows nothing
			// about the damage, and a start succeeds when one of the two has ended.
			for range 10 {
				var refused *client.Error
				err = harness.ErrOf(d.neighbour.Start(ctx, user))
				if !errors.As(err, &refused) || refused.Code != "PORT_EXHAUSTION" || !pause.For(ctx, time.Second) {
					return err
				}
			}
			return err
		}},
		{"destroy", func() error { return harness.ErrOf(d.neighbour.Destroy(ctx, user)) }},
	} {
		if err := call.do(); err != nil {
			return fmt.Errorf("%s of another product's engine: %w", call.name, err)
		}
	}
	return nil
}

// adminReads makes the admin's calls that read everything.
func (d *damage) adminReads(t *testing.T) {
	t.Helper()
	for _, id := range []string{"getStatus", "listProducts", "planReconcile", "requestReconcile", "listQuarantine", "listUnreachableVolumes", "getRegistry", "providerKeys"} {
		i := slices.IndexFunc(harness.Operations, func(o harness.Operation) bool { return o.ID == id })
		o := harness.Operations[i]
		o.Key = harness.AdminHeader
		if got := d.r.Send(t, o, harness.AdminKey); got.Status != 200 {
			t.Errorf("%s: got %d %s", id, got.Status, got.Text)
		}
	}
}

// works returns an error unless the damaged user has its engine, with its memory.
func (d *damage) works(ctx context.Context) error {
	got, err := harness.Admit(ctx, d.harmed, "u", false, false)
	if err != nil {
		var e *client.Error
		if errors.As(err, &e) && e.Status == 500 {
			d.t.Errorf("the harmed product got %v", err)
		}
		return err
	}
	if !got.Admitted || got.Engine.EngineID != d.engine.EngineID {
		return fmt.Errorf("admitted to %+v, %s", got.Engine, got.Reason)
	}
	if status, err := harness.EngineCall(ctx, got.Engine, got.Engine.APIKey, "GET", "/memory/export", nil, nil); err != nil || status != 200 {
		return fmt.Errorf("its engine returns %d, %w", status, err)
	}
	return harness.Export(d.t, got.Engine, got.Engine.APIKey).Knows("before the damage")
}

// TestDamagedRecords damages every kind of key of the registry, by deleting it and by
// overwriting it with rubbish. Other products are not affected, the admin can read all the
// rest, and after a pass the damaged parts are as before.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	// In sequence they would take as long as a whole suite.
	var lanes [3]*damage
	for i := range lanes {
		lanes[i] = newDamage(t, fmt.Sprintf("damaged-%d/", i), nil)
	}
	var running sync.WaitGroup
	for i, d := range lanes {
		running.Go(func() { d.records(t, i, len(lanes)) })
	}
	running.Wait()
	for _, d := range lanes {
		d.t, d.s.T = t, t
		if _, err := d.harmed.Destroy(t.Context(), "u"); err != nil {
			t.Error(err)
		}
		if left := d.left(); len(left) > 0 {
			t.Errorf("left of the harmed engine: %v", left)
		}
	}
}

// records damages a record of each kind that belongs to a lane: every lanes-th kind,
// starting with the lane's number. The rows of engines are in the lane of the deployment's
// record, which records that a row was rebuilt until the record itself is created again.
func (d *damage) records(t *testing.T, lane, lanes int) {
	ctx := t.Context()
	id, hash := d.engine.EngineID, secrets.Hash(d.harmed.PlatformKey)
	once := d.below("idempotency/", d.product)
	someID := d.engine.EngineID[:6] + "aaaaaaaaaaaaaaaaaaaa"
	for i, kind := range []struct {
		name string
		key  func() string
		// waits: the record belongs to the whole service, and all calls wait for it, for a
		// while.
		waits bool
		// mended returns an error unless the record is as required; nil: nothing is
		// required.
		mended func(key, before string) error
	}{
		{name: "products", key: func() string { return d.below("products/", d.product) }, mended: d.mended},
		{name: "slugs", key: func() string { return d.below("slugs/", d.product) }, mended: d.mended},
		{name: "engines", key: func() string { return d.below("engines/", id) }},
		{name: "platform-keys", key: func() string { return d.below("platform-keys/", hash) }, mended: d.mended},
		{name: "engine-ids", key: func() string { return d.below("engine-ids/", id) }, mended: d.mended},
		{name: "changes", key: func() string { return d.below("changes/") }},
		{name: "quota", key: func() string { return d.below("quota/", d.product) }, mended: d.mended},
		{name: "rate", key: func() string { return d.below("rate/", d.product) }},
		{name: "idempotency", key: func() string { return once }},
		{name: "pool", key: func() string { return d.below("pool/volumes/") }, mended: d.pooled},
		{name: "graves", key: func() string { return d.prefix + "graves/" + someID }, mended: d.gone},
		{name: "orphans", key: func() string { return d.prefix + "orphans/" + someID }, mended: d.gone},
		{name: "quarantine", key: func() string { return d.prefix + "quarantine/" + someID }, mended: d.gone},
		{name: "warm-setbacks", key: func() string { return d.prefix + "warm-setbacks/0123456789abcdef" }, mended: d.gone},
		{name: "storm", key: func() string { return d.prefix + "storm" }},
		{name: "provider-keys", key: func() string { return d.prefix + "provider-keys" }},
		{name: "reconcile-request", key: func() string { return d.prefix + "reconcile-request" }},
		{name: "activity", key: func() string { return d.below("activity/") }},
		{name: "replicas", key: func() string { return d.below("replicas/") }, waits: true},
		{name: "leader", key: func() string { return d.prefix + "leader" }, waits: true},
		{name: "deployment", key: func() string { return d.prefix + "deployment" }, waits: true},
	} {
		if i%lanes != lane {
			continue
		}
		for _, how := range []string{"deleted", "rubbish"} {
			t.Run(kind.name+"/"+how, func(t *testing.T) {
				d.t, d.s.T = t, t
				harness.Eventually(t, "the user has its engine", func() error { return d.works(ctx) })
				key := kind.key()
				before := d.value(key)
				if how == "deleted" {
					d.remove(key)
				} else {
					d.write(key, rubbish)
				}
				d.adminReads(t)
				if kind.waits {
					harness.Eventually(t, "another product works", func() error { return d.life(ctx) })
				} else if err := d.life(ctx); err != nil {
					t.Error(err)
				}
				harness.Eventually(t, "the harmed product has its engine again", func() error { return d.works(ctx) })
				if kind.mended != nil {
					harness.Eventually(t, "the record is right again", func() error { return kind.mended(key, before) })
				}
				harness.Eventually(t, "nothing is unreadable", func() error {
					st, err := d.r.Admin().Whole(ctx)
					if err == nil && (st.Unreadable != client.Unreadable{} || st.Quarantined > 0) {
						err = fmt.Errorf("%+v", st)
					}
					return err
				})
				d.adminReads(t)
			})
		}
	}
}

// left returns what exists of the damaged engine, except for the record of its provision.
func (d *damage) left() []string {
	d.t.Helper()
	return slices.DeleteFunc(d.s.Traces(d.engine.EngineID), func(what string) bool { return strings.Contains(what, "/idempotency/") })
}

// mended returns an error unless a record is as before.
func (d *damage) mended(key, before string) error {
	if now := d.value(key); now != before {
		return fmt.Errorf("%s is %q, and was %q", key, now, before)
	}
	return nil
}

func (d *damage) gone(key, _ string) error {
	if now := d.value(key); now != "" {
		return fmt.Errorf("%s is %q", key, now)
	}
	return nil
}

// pooled returns an error if an entry of the pool is damaged.
func (d *damage) pooled(string, string) error {
	pairs, _, err := d.s.Consul.KV().List(d.prefix+"pool/volumes/", nil)
	for _, p := range pairs {
		if string(p.Value) == rubbish {
			return fmt.Errorf("%s is damaged", p.Key)
		}
	}
	return err
}
