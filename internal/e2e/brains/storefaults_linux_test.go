package brains

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/brain/store/storetest"
	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestStoreFaults: whatever the store does during a snapshot, the engine goes on, the caller
// learns what is wrong, and a later snapshot works: the last fault of each engine only delays
// one.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	type fault struct {
		name   string
		hook   hook
		status int    // 0: the snapshot is taken all the same
		code   string // of the error
	}
	t.Run("during", func(t *testing.T) {
		for user, faults := range map[string][]fault{
			"parts": {
				{"Away", status(isAny, 503, "SlowDown"), 503, "SNAPSHOT_STORE_UNAVAILABLE"},
				{"Refused", status(isPart, 403, "InvalidAccessKeyId"), 502, "BACKEND_REFUSED"},
				{"PartsAway", times(3, isPart, status(isPart, 503, "SlowDown")), 0, ""},
			},
			"room": {
				{"QuotaExceeded", status(isPart, 403, "QuotaExceeded"), 507, "SNAPSHOT_FAILED"},
				{"FullAtTheEnd", status(isCompletion, 507, "InsufficientStorage"), 507, "SNAPSHOT_FAILED"},
				{"CompletionAway", times(4, isCompletion, status(isCompletion, 503, "SlowDown")), 0, ""},
			},
			"connections": {
				{"FullAtTheManifest", status(isManifest, 507, "InsufficientStorage"), 507, "SNAPSHOT_FAILED"},
				{"PartsCut", times(2, isPart, cut(isPart)), 0, ""},
				{"CompletionLost", times(1, isCompletion, b.lost(isCompletion)), 0, ""},
			},
		} {
			t.Run(user, func(t *testing.T) {
				t.Parallel()
				e := harness.Provision(t, c, user, "")
				harness.Remember(t, e, e.APIKey, "before")
				taken := 0
				for _, f := range faults {
					b.fails(e.EngineID, f.hook)
					_, err := c.Snapshot(t.Context(), user, f.name)
					if f.status > 0 {
						harness.WantCode(t, err, f.status, f.code)
						settled(t, c, user)
					} else if taken++; err != nil {
						t.Fatalf("%s: %v", f.name, err)
					}
					b.fails(e.EngineID, nil)
					unharmed(t, c, e, "before")
					if has := b.tidy(t, e.EngineID); len(has) != taken {
						t.Errorf("after %s: snapshots %v, want %d", f.name, has, taken)
					}
				}
			})
		}
		// A store that does not respond is noticed only after a while. The engine does not
		// wait for it.
		t.Run("hangs", func(t *testing.T) {
			t.Parallel()
			e := harness.Provision(t, c, "hangs", "")
			harness.Remember(t, e, e.APIKey, "before")
			for _, hang := range []struct {
				which func(*http.Request) bool
				then  hook
				code  string
			}{{isBegin, cut(isBegin), "SNAPSHOT_STORE_UNAVAILABLE"}, {isPart, times(1, isPart, cut(isPart)), ""}} {
				h := b.hold(t, e.EngineID, hang.which, hang.then)
				taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(t.Context(), "hangs", "") })
				h.await(t)
				harness.Remember(t, e, e.APIKey, "meanwhile")
				unharmed(t, c, e, "before", "meanwhile")
				h.release()
				if taken := <-taking; codeOf(taken.err) != hang.code || hang.code == "" && taken.err != nil {
					t.Errorf("got %v, want %q", taken.err, hang.code)
				}
				settled(t, c, "hangs")
			}
			if has := b.tidy(t, e.EngineID); len(has) != 1 {
				t.Errorf("snapshots %v", has)
			}
		})
	})
	b.noUploads(t)
}

// TestNodeGoesOn: while a snapshot is sent, other engines start on the same node.
func TestNodeGoesOn(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	s := harness.OpenStores(t, harness.Shared)
	e := harness.Provision(t, c, "u", "")
	h := b.hold(t, e.EngineID, isPart, nil)
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "u", "") })
	h.await(t)
	beside := ""
	for n := 0; beside == ""; n++ {
		if n == 8 {
			t.Fatal("no other engine is on the node")
		}
		if other := harness.Provision(t, c, fmt.Sprintf("other-%d", n), ""); s.NodeOf(other.EngineID) == s.NodeOf(e.EngineID) {
			beside = other.UserID
		}
	}
	if _, err := c.Stop(ctx, beside); err != nil {
		t.Error(err)
	}
	if _, err := c.Start(ctx, beside); err != nil {
		t.Error(err)
	}
	h.end(t, taking)
}

// TestDamagedSnapshots: a snapshot that is not what was stored is not restored, and the
// engine goes on with its memory and its key.
func TestDamagedSnapshots(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "first")
	first, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "second")
	newest, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	half := func(text []byte) []byte { return text[:len(text)/2] }
	object, manifest := b.object(e.EngineID, newest.SnapshotID), b.manifest(e.EngineID, newest.SnapshotID)
	for _, damage := range []struct {
		path   string
		change func([]byte) []byte
	}{
		{object, half},
		{object, func(text []byte) []byte {
			text[len(text)/2] ^= 1
			return text
		}},
		{manifest, half},
		{manifest, func(text []byte) []byte {
			at := bytes.Index(text, []byte(`"sha256": "`)) + len(`"sha256": "`)
			return append(append(bytes.Clone(text[:at]), bytes.Repeat([]byte("0"), 64)...), text[at+64:]...)
		}},
	} {
		var stored []byte
		edit(t, damage.path, func(text []byte) []byte {
			stored = bytes.Clone(text)
			return damage.change(text)
		})
		harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", "")), 422, "SNAPSHOT_CORRUPT")
		settled(t, c, "u")
		unharmed(t, c, e, "first", "second")
		edit(t, damage.path, func([]byte) []byte { return stored })
	}
	if has := b.tidy(t, e.EngineID); len(has) != 2 {
		t.Errorf("snapshots %v", has)
	}
	restored, err := c.Restore(ctx, "u", first.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	memory := harness.Export(t, restored, restored.APIKey)
	if err := memory.Knows("first"); err != nil || memory.Knows("second") == nil {
		t.Errorf("it has another memory: %v, %+v", err, memory)
	}
}

// TestFaultsOfARestore: a store that fails during a restore delays it, or the engine stays
// as it is.
func TestFaultsOfARestore(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "first")
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "second")

	b.fails(e.EngineID, status(isAny, 503, "SlowDown"))
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", taken.SnapshotID)), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	harness.WantCode(t, harness.ErrOf(c.Snapshots(ctx, "u", client.SnapshotPage{})), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	harness.WantCode(t, c.DeleteSnapshot(ctx, "u", taken.SnapshotID), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", taken.SnapshotID)), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	b.fails(e.EngineID, status(isFetch, 403, "AccessDenied"))
	harness.WantCode(t, harness.ErrOf(c.Restore(ctx, "u", taken.SnapshotID)), 502, "BACKEND_REFUSED")
	settled(t, c, "u")
	harness.WantCode(t, harness.ErrOf(c.Fork(ctx, "u", "v", taken.SnapshotID)), 502, "BACKEND_REFUSED")
	harness.Eventually(t, "the fork that failed is gone", func() error {
		if _, err := c.Engine(ctx, "v"); codeOf(err) != "ENGINE_NOT_FOUND" {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	unharmed(t, c, e, "first", "second")
	if has := b.tidy(t, e.EngineID); len(has) != 1 {
		t.Errorf("snapshots %v", has)
	}
	b.noUploads(t)

	b.fails(e.EngineID, times(2, isFetch, b.cutResponse(isFetch)))
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	memory := harness.Export(t, restored, restored.APIKey)
	if err := memory.Knows("first"); err != nil || memory.Knows("second") == nil {
		t.Errorf("it has another memory: %v, %+v", err, memory)
	}

	// A destroy does not wait for the store until nobody can read the snapshots any more.
	b.fails(e.EngineID, status(isAny, 503, "SlowDown"))
	d, err := c.Provision(ctx, "other", "") // the cleanup destroys u
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Snapshot(ctx, "other", ""); err != nil {
		t.Fatal(err)
	}
	b.fails(d.EngineID, status(isAny, 503, "SlowDown"))
	harness.WantCode(t, harness.ErrOf(c.Destroy(ctx, "other")), 503, "SNAPSHOT_STORE_UNAVAILABLE")
	if harness.OpenStores(t, harness.Shared).BrainKey(d.EngineID) != "" {
		t.Error("the key of the snapshots is still there")
	}
	if len(b.names("objects", d.EngineID)) == 0 {
		t.Error("the snapshot was deleted, while the store was away")
	}
	b.fails(d.EngineID, nil)
	b.fails(e.EngineID, nil)
	harness.Eventually(t, "the engine is gone", func() error {
		if _, err := c.Engine(ctx, "other"); codeOf(err) != "ENGINE_NOT_FOUND" {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	if has := b.tidy(t, d.EngineID); len(has) > 0 {
		t.Errorf("left in the bucket: %v", has)
	}
}

// TestWrongKeys: a store that refuses the service's keys is an error for the operator.
func TestWrongKeys(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	vars := b.vars("ORCH_CONSUL_PREFIX=wrong-keys/")
	wrong := harness.StartService(t, harness.Shared, harness.With(vars, "ORCH_SNAPSHOT_SECRET_KEY=a-wrong-secret"))
	c := wrong.Product(t, nil)
	ctx := t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before")
	harness.WantCode(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 502, "BACKEND_REFUSED")
	harness.WantCode(t, harness.ErrOf(c.Snapshots(ctx, "u", client.SnapshotPage{})), 502, "BACKEND_REFUSED")
	settled(t, c, "u")
	unharmed(t, c, e, "before")
	wrong.Stop()
	right := harness.StartService(t, harness.Shared, vars)
	c = harness.At(c, right)
	if _, err := c.Snapshot(ctx, "u", ""); err != nil {
		t.Error(err)
	}
	unharmed(t, c, e, "before")
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
	if strings.Contains(wrong.Logs.String(), storetest.Credentials.SecretKey) {
		t.Error("the key is in the log")
	}
}
