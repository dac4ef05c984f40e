package brains

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// lost is a deployment that loses everything but Vault and its store.
type lost struct {
	*harness.Stores
	prefix, store string
	vars          map[string]string
}

func newLost(t *testing.T) *lost {
	prefix, dir := "lost-"+strings.ToLower(t.Name())+"/", t.TempDir()
	return &lost{harness.OpenStores(t, harness.Shared), prefix, dir, map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_SNAPSHOT_URL": "file://" + dir, "ORCH_VOLUME_POOL": "0", "ORCH_SNAPSHOTS_PER_NODE": "4",
	}}
}

// wipe removes everything of a deployment from Consul, and everything of engines from Nomad:
// processes, jobs, volumes and variables.
func (l *lost) wipe(engines ...*client.Engine) {
	t := l.T
	t.Helper()
	if _, err := l.Consul.KV().DeleteTree(l.prefix, nil); err != nil {
		t.Fatal(err)
	}
	for _, e := range engines {
		name := "engine-" + e.EngineID
		if _, _, err := l.Nomad.Jobs().Deregister(name, true, nil); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "Nomad has nothing of "+name, func() error {
			if n := harness.Processes(harness.Shared, e.EngineID); n > 0 {
				return fmt.Errorf("%d processes", n)
			}
			if _, err := l.Nomad.Variables().Delete("nomad/jobs/"+name, nil); err != nil {
				return err
			}
			volumes, _, err := l.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: name})
			for _, v := range volumes {
				if strings.HasPrefix(v.Name, name) {
					_, _, derr := l.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: v.ID}, nil)
					err = errors.Join(err, derr, fmt.Errorf("volume %s", v.Name))
				}
			}
			if services, _, serr := l.Consul.Catalog().Service(name, "", nil); len(services) > 0 || serr != nil {
				err = errors.Join(err, serr, fmt.Errorf("%d services", len(services)))
			}
			return err
		})
	}
}

// statuses lists the engines of the store, when the registry is complete again.
func (l *lost) statuses(admin *client.Client) map[string]client.StoredEngine {
	l.T.Helper()
	var all map[string]client.StoredEngine
	harness.Eventually(l.T, "the registry is complete again", func() error {
		all = map[string]client.StoredEngine{}
		for cursor := ""; ; {
			page, err := admin.StoredEngines(l.T.Context(), client.SnapshotPage{Limit: 2, Cursor: cursor})
			if err != nil {
				return err
			}
			for _, e := range page.Engines {
				all[e.EngineID] = e
			}
			if cursor = page.NextCursor; cursor == "" {
				return nil
			}
		}
	})
	return all
}

// owned is an engine of a user before everything was lost.
type owned struct {
	c *client.Client
	*client.Engine
	memory string
}

// remembers provisions an engine that remembers something, and takes a snapshot of it.
func remembers(t *testing.T, c *client.Client, user, memory string) *owned {
	t.Helper()
	return remembersWith(t, c, user, memory, "")
}

func remembersWith(t *testing.T, c *client.Client, user, memory, image string) *owned {
	t.Helper()
	e, err := c.Provision(t.Context(), user, image)
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, memory)
	if _, err := c.Snapshot(t.Context(), user, ""); err != nil {
		t.Fatal(err)
	}
	return &owned{c, e, memory}
}

// back fails unless the user has its engine with its brain again.
func (o *owned) back(t *testing.T, r *harness.Replica, sameKey bool, others ...*owned) {
	t.Helper()
	e, err := harness.At(o.c, r).Engine(t.Context(), o.UserID)
	if err != nil {
		t.Fatal(err)
	}
	if e.EngineID != o.EngineID || e.Status != "running" || (e.APIKey == o.APIKey) != sameKey {
		t.Errorf("%s has %+v, it had %+v", o.UserID, e, o.Engine)
	}
	memory := harness.Export(t, e, e.APIKey)
	if err := memory.Knows(o.memory); err != nil {
		t.Error(err)
	}
	harness.KeyIs(t, e, o.APIKey, sameKey)
	for _, other := range others {
		harness.KeyIs(t, e, other.APIKey, false)
		if memory.Knows(other.memory) == nil {
			t.Errorf("%s has the memory of %s", o.UserID, other.UserID)
		}
	}
}

// leave destroys engines at the end of the test, as long as the service runs.
func leave(t *testing.T, r *harness.Replica, engines ...*owned) {
	t.Cleanup(func() {
		for _, o := range engines {
			if _, err := harness.At(o.c, r).Destroy(context.Background(), o.UserID); err != nil {
				t.Errorf("destroy %s: %v", o.UserID, err)
			}
		}
	})
}

// manifest returns the path of an engine's only manifest.
func (l *lost) manifest(engineID string) string {
	l.T.Helper()
	names, err := filepath.Glob(filepath.Join(l.store, "manifests", engineID, "*.json"))
	if err != nil || len(names) != 1 {
		l.T.Fatalf("%v, %v", names, err)
	}
	return names[0]
}

// TestImport: Consul and Nomad lose everything, and each user gets its own engine again from
// the store, with its own memory and its own key. A manifest that somebody else has written
// gives nobody anything, and a destroyed engine stays destroyed.
func TestImport(t *testing.T) {
	t.Parallel()
	l := newLost(t)
	ctx := t.Context()
	r := harness.StartService(t, harness.Shared, l.vars)
	p, q := r.Product(t, nil), r.Product(t, nil)
	a, b, c := remembers(t, p, "a", "of a"), remembers(t, p, "b", "of b"), remembers(t, q, "a", "of the other product")
	moved, gone, forged := remembers(t, p, "moved", "of moved"), remembers(t, q, "gone", "of gone"), remembers(t, q, "forged", "of forged")
	image, bare := remembersWith(t, r.Product(t, harness.AnyImage), "other", "of an image", "reference-engine.v2"), remembers(t, r.Product(t, nil), "bare", "of bare")
	rekeyed := remembers(t, r.Product(t, nil), "rekeyed", "of rekeyed")
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(l.store)); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Destroy(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	unknown, err := r.Admin().EngineByID(ctx, bare.EngineID)
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	l.wipe(a.Engine, b.Engine, c.Engine, moved.Engine, forged.Engine, image.Engine, bare.Engine, rekeyed.Engine)
	replaceKey(t, l.Stores, rekeyed.EngineID)
	for _, kind := range []string{"manifests", "objects"} {
		at := filepath.Join(kind, gone.EngineID)
		if err := os.CopyFS(filepath.Join(l.store, at), os.DirFS(filepath.Join(copied, at))); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever can write to the store wants the brain of another user.
	file := l.manifest(forged.EngineID)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	m["user_id"] = "attacker"
	if text, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// The snapshot of one engine is that of another one now.
	object := filepath.Join(l.store, "objects", b.EngineID, strings.TrimSuffix(filepath.Base(l.manifest(b.EngineID)), ".json")+".tar.zst.age")
	whole, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, bytes.Repeat([]byte{'x'}, len(whole)), 0o600); err != nil {
		t.Fatal(err)
	}
	// One has lost its API key, too.
	mount := harness.MountName(l.prefix)
	if _, err := l.Vault.Logical().Delete(mount + "/metadata/engines/" + c.EngineID); err != nil {
		t.Fatal(err)
	}

	// Vault knows nothing of one of the products.
	if _, err := l.Vault.Logical().Delete(mount + "/metadata/products/" + unknown.ProductID); err != nil {
		t.Fatal(err)
	}

	r = harness.StartService(t, harness.Shared, l.vars)
	admin := r.Admin()
	policyOf := l.statuses(admin)[image.EngineID].ProductID
	if _, err := harness.At(p, r).Provision(ctx, "moved", ""); err != nil {
		t.Fatal(err)
	}
	want := map[*owned]string{a: "importable", b: "importable", c: "importable", moved: "user_taken", gone: "no_key", forged: "foreign", image: "importable", bare: "no_product", rekeyed: "no_key"}
	got := l.statuses(admin)
	for o, status := range want {
		if e := got[o.EngineID]; e.Status != status || e.Snapshots != 1 || e.Bytes == 0 {
			t.Errorf("%s is %+v, want %s", o.UserID, e, status)
		}
	}
	for o, code := range map[*owned]string{moved: "409 ENGINE_ALREADY_EXISTS", gone: "404 SNAPSHOT_NOT_FOUND", forged: "422 SNAPSHOT_CORRUPT", b: "422 SNAPSHOT_CORRUPT", bare: "404 PRODUCT_NOT_FOUND", rekeyed: "404 SNAPSHOT_NOT_FOUND"} {
		_, err := admin.Import(ctx, o.EngineID, "")
		if got := harness.OutcomeOf(err); got != code {
			t.Errorf("%s: %v, want %s", o.UserID, err, code)
		}
	}
	_, err = admin.Import(ctx, a.EngineID, "no-such-snapshot")
	harness.WantCode(t, err, 404, "SNAPSHOT_NOT_FOUND")
	if got := l.statuses(admin)[b.EngineID]; got.Status != "importable" {
		t.Errorf("after an import that failed: %+v", got)
	}
	if err := os.WriteFile(object, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	three := []*owned{a, b, c}
	for code, n := range harness.Outcomes(2*len(three), func(i int) error {
		_, err := admin.Import(ctx, three[i/2].EngineID, "")
		return err
	}) {
		if code != "ok" && code != "409 ENGINE_ALREADY_EXISTS" && code != "409 ENGINE_BUSY" {
			t.Errorf("%d imports: %s", n, code)
		}
	}
	// The product's policy decides, as for a provision.
	policy := func(fields map[string]any) {
		t.Helper()
		if _, err := admin.SetPolicy(ctx, policyOf, *harness.PolicyOf(t, fields)); err != nil {
			t.Fatal(err)
		}
	}
	policy(nil)
	_, err = admin.Import(ctx, image.EngineID, "")
	harness.WantCode(t, err, 403, "POLICY_DENIED")
	policy(map[string]any{"allowed_images": []string{"*"}, "max_engines": 0})
	_, err = admin.Import(ctx, image.EngineID, "")
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	policy(harness.AnyImage)
	_, err = admin.Import(client.RespondAsync(ctx, 0), image.EngineID, "")
	if !errors.As(err, new(*client.UnderWay)) {
		t.Errorf("an import that is not waited for: %v", err)
	}
	harness.AwaitEngine(t, harness.At(image.c, r), "other", "running", "")
	image.back(t, r, true, a, b)
	leave(t, r, a, b, c, moved, image)
	a.back(t, r, true, b, c, moved)
	b.back(t, r, true, a, c, moved)
	c.back(t, r, false, a, b, moved)
	rows, err := l.Engines(l.prefix)
	if err != nil || len(rows) != 5 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	for _, o := range three {
		_, err := admin.Import(ctx, o.EngineID, "")
		harness.WantCode(t, err, 409, "ENGINE_ALREADY_EXISTS")
		if got := l.statuses(admin)[o.EngineID]; got.Status != "present" {
			t.Errorf("%+v", got)
		}
	}
}

// TestImportGoesOn: the service is killed in the middle of an import, and another one ends
// it.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	l := newLost(t)
	r := harness.StartService(t, harness.Shared, l.vars)
	c := r.Product(t, nil)
	a := remembers(t, c, "a", "of a")
	r.Stop()
	l.wipe(a.Engine)
	f := harness.StartFaulty(t, l.prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), "kill restore/new-key/done",
		"ORCH_SNAPSHOT_URL=file://"+l.store, "ORCH_VOLUME_POOL=0")
	if got := l.statuses(f.Client)[a.EngineID]; got.Status != "importable" {
		t.Fatalf("%+v", got)
	}
	if _, err := f.Import(t.Context(), a.EngineID, ""); err == nil {
		t.Fatal("the service was not killed")
	}
	if err := f.AwaitDeath(); err != nil {
		t.Fatal(err)
	}
	r = harness.StartService(t, harness.Shared, l.vars)
	leave(t, r, a)
	harness.AwaitEngine(t, harness.At(c, r), "a", "running", "")
	a.back(t, r, true)
}
