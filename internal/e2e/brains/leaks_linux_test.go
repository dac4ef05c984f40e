package brains

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/brain/store/storetest"
	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/jobs"
)

// TestBucket runs engines' snapshots through their life in a bucket, and searches for the
// store's keys, every signature that was used, and the keys of the brains: while a worker
// runs, they are in its order alone, and afterwards nowhere.
func TestBucket(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "yesterday")
	l := leaks{t: t, b: b, r: r, stores: harness.OpenStores(t, harness.Shared), identities: map[string]bool{}}

	h := b.hold(t, e.EngineID, isPart, nil)
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "u", "") })
	h.await(t)
	l.identities[l.stores.BrainKey(e.EngineID)] = true
	if order := l.search(); !strings.Contains(order, `part_bytes`) {
		t.Error("the order of the snapshot is not where it should be: the search is blind")
	}
	h.release()
	taken := <-taking
	if taken.err != nil {
		t.Fatal(taken.err)
	}
	h = b.hold(t, e.EngineID, isFetch, nil)
	restoring := begin(func() (*client.Engine, error) { return c.Restore(ctx, "u", taken.of.SnapshotID) })
	h.await(t)
	if order := l.search(); !strings.Contains(order, l.stores.BrainKey(e.EngineID)) || !strings.Contains(order, "X-Amz-Signature") {
		t.Error("the order of the restore is not where it should be: the search is blind")
	}
	h.release()
	if restored := <-restoring; restored.err != nil {
		t.Fatal(restored.err)
	}
	forked, err := c.Fork(ctx, "u", "copy", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, forked, forked.APIKey).Knows("yesterday"); err != nil {
		t.Error(err)
	}
	if _, err := c.Snapshot(ctx, "copy", ""); err != nil {
		t.Fatal(err)
	}
	l.identities[l.stores.BrainKey(forked.EngineID)] = true
	if err := c.DeleteSnapshot(ctx, "u", taken.of.SnapshotID); err != nil {
		t.Error(err)
	}
	if has := b.tidy(t, e.EngineID); len(has) != 2 { // of the restore, and of the fork
		t.Errorf("snapshots %v", has)
	}
	for user, id := range map[string]string{"u": e.EngineID, "copy": forked.EngineID} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
		if left := b.tidy(t, id); len(left) > 0 {
			t.Errorf("snapshots of %s are left: %v", user, left)
		}
	}
	b.noUploads(t)
	if len(l.identities) != 2 || l.identities[""] {
		t.Error("the identities were not found: the search is blind")
	}
	l.search()
}

// leaks searches for the secrets of snapshots.
type leaks struct {
	t          *testing.T
	b          *bucket
	r          *harness.Replica
	stores     *harness.Stores
	identities map[string]bool
}

// search fails the test if a secret is in a place that is not a worker's order, and returns
// the orders.
func (l leaks) search() (orders string) {
	l.t.Helper()
	haystack := l.stores.Dump(harness.Shared)
	haystack["log of the service"] = l.r.Logs.String()
	var audit json.RawMessage
	if err := l.r.Admin().Do(l.t.Context(), http.MethodGet, "/audit?limit=1000", nil, &audit); err != nil {
		l.t.Fatal(err)
	}
	haystack["audit log"] = string(audit)
	_ = filepath.WalkDir(harness.Shared.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), jobs.WorkerTask+".std") { // otherwise it was deleted
			if text, err := os.ReadFile(path); err == nil {
				haystack[path] = string(text)
			}
		}
		return nil
	})
	for place, text := range haystack {
		if strings.HasPrefix(place, "nomad variable nomad/jobs/"+jobs.WorkerPrefix) {
			orders += strings.ReplaceAll(strings.ReplaceAll(text, `\u0026`, "&"), `\`, "")
			delete(haystack, place)
		}
	}
	secrets := map[string]string{storetest.Credentials.AccessKey: "access key", storetest.Credentials.SecretKey: "secret key"}
	for one := range l.identities {
		secrets[one] = "key of a brain"
	}
	l.b.mu.Lock()
	for one := range l.b.signatures {
		secrets[one] = "signature of a URL"
	}
	signatures := len(l.b.signatures)
	l.b.mu.Unlock()
	if signatures == 0 {
		l.t.Error("no signature was seen: the search is blind")
	}
	for place, text := range haystack {
		for one, what := range secrets {
			if one != "" && strings.Contains(text, one) {
				l.t.Errorf("the %s is in %s", what, place)
			}
		}
	}
	return orders
}
