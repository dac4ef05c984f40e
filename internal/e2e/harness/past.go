package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
)

// Past is a deployment whose registry can be restored to an earlier state.
type Past struct {
	t     *testing.T
	Stack *devstack.Stack
	S     *Stores
	Vars  map[string]string
	R     *Replica
	Known map[string]*OwnedEngine // by product and user
	Seen  map[string]string       // owner of each engine_id and key
}

// OwnedEngine is what a user knows about its engine, and stored in it.
type OwnedEngine struct {
	C       *client.Client
	product string
	User    string
	Engine  *client.Engine
	Memory  string
	Status  string // the expected status after everything is rebuilt
	Gone    bool   // whether it was destroyed
}

// NewPast starts separate agents and a service. vars adds to its configuration.
func NewPast(t *testing.T, vars map[string]string) *Past {
	t.Helper()
	stack := OwnStack(t)
	all := map[string]string{
		"ORCH_CONSUL_PREFIX": "past/", "ORCH_VOLUME_POOL": "3", "ORCH_RECONCILE_INTERVAL_S": "2", "ORCH_ORPHAN_GRACE_S": "2",
		"ORCH_DATABASE_URL": "sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}
	for k, v := range vars {
		all[k] = v
	}
	p := &Past{t: t, Stack: stack, S: OpenStores(t, stack), Vars: all, Known: map[string]*OwnedEngine{}, Seen: map[string]string{}}
	p.R = StartService(t, stack, all)
	return p
}

// Tenant registers a product.
func (p *Past) Tenant(slug string, policy map[string]any) *client.Client {
	p.t.Helper()
	made, err := p.R.Admin().RegisterProduct(p.t.Context(), slug, slug, PolicyOf(p.t, policy))
	if err != nil {
		p.t.Fatal(err)
	}
	return &client.Client{BaseURL: p.R.URL, PlatformKey: made.PlatformAPIKey}
}

// Provision creates an engine for a user and stores something in it. It fails if the user
// gets an id or a key that another user had.
func (p *Past) Provision(c *client.Client, product, user string) *OwnedEngine {
	p.t.Helper()
	c.BaseURL = p.R.URL
	e, err := c.Provision(p.t.Context(), user, "")
	if err != nil {
		p.t.Fatalf("provision of %s/%s: %v", product, user, err)
	}
	who := product + "/" + user
	for _, word := range []string{e.EngineID, e.APIKey} {
		if whose := p.Seen[word]; whose != "" {
			p.t.Fatalf("%s was given %s, which is %s's", who, word, whose)
		}
		p.Seen[word] = who
	}
	if m := Export(p.t, e, e.APIKey); len(m.Memories) > 0 {
		p.t.Fatalf("%s was given a brain that knows %+v", who, m.Memories)
	}
	o := &OwnedEngine{C: c, product: product, User: user, Engine: e, Memory: "the secret of " + who, Status: "running"}
	Remember(p.t, e, e.APIKey, o.Memory)
	p.Known[who] = o
	return o
}

// Snapshot returns a snapshot of Consul.
func (p *Past) Snapshot() []byte {
	p.t.Helper()
	in, _, err := p.S.Consul.Snapshot().Save(nil)
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

// Restore restores a snapshot of Consul; stopped says whether the service is stopped
// meanwhile, as the manual requires.
func (p *Past) Restore(snapshot []byte, stopped bool) {
	p.t.Helper()
	if stopped {
		p.R.Stop()
	}
	if err := p.S.Consul.Snapshot().Restore(nil, bytes.NewReader(snapshot)); err != nil {
		p.t.Fatal(err)
	}
	if stopped {
		p.R = StartService(p.t, p.Stack, p.Vars)
	}
}

// Whole waits until the registry reports that it was rebuilt, and then until everything is
// as the users know it.
func (p *Past) Whole() {
	p.t.Helper()
	Eventually(p.t, "the registry is rebuilt", func() error {
		st, err := p.R.Admin().Registry(p.t.Context())
		if err != nil {
			return err
		}
		if st.State != "ok" || st.Quarantined != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	for who, o := range p.Known {
		Eventually(p.t, who+" has its engine again", func() error { return p.Has(o) })
	}
	rows, err := p.S.Engines(p.Vars["ORCH_CONSUL_PREFIX"])
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

// Has returns how a user's engine differs from what the user expects.
func (p *Past) Has(o *OwnedEngine) error {
	o.C.BaseURL = p.R.URL
	got, err := o.C.Engine(p.t.Context(), o.User)
	var bad *client.Error
	if o.Gone {
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
	if got.EngineID != o.Engine.EngineID || got.APIKey != o.Engine.APIKey || got.Status != o.Status || !got.CreatedAt.Equal(o.Engine.CreatedAt) && !o.Engine.CreatedAt.IsZero() {
		return fmt.Errorf("it is %+v, it was %+v", got, o.Engine)
	}
	if o.Status != "running" {
		return nil
	}
	return Export(p.t, got, o.Engine.APIKey).Knows(o.Memory)
}
