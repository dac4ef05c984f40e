package brains

import (
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// keyed is an engine with a snapshot, of which the key of its snapshots is removed in Vault.
type keyed struct {
	*harness.Stores
	b     *bucket
	c     *client.Client
	e     *client.Engine
	taken *client.Snapshot
}

func newKeyed(t *testing.T, b *bucket, c *client.Client, user string) *keyed {
	t.Helper()
	k := &keyed{Stores: harness.OpenStores(t, harness.Shared), b: b, c: c, e: harness.Provision(t, c, user, "")}
	harness.Remember(t, k.e, k.e.APIKey, "before")
	var err error
	if k.taken, err = c.Snapshot(t.Context(), user, ""); err != nil {
		t.Fatal(err)
	}
	return k
}

// vault sends a request about the key: data deletes it, metadata deletes it for good, and
// undelete brings it back.
func (k *keyed) vault(t *testing.T, what string) {
	t.Helper()
	path := k.MountWith(k.e.EngineID) + "/" + what + "/brains/" + k.e.EngineID
	var err error
	if what == "undelete" {
		_, err = k.Vault.Logical().Write(path, map[string]any{"versions": []int{1}})
	} else {
		_, err = k.Vault.Logical().Delete(path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fails fails the test unless an error has a status and a code, and says this.
func (k *keyed) fails(t *testing.T, err error, status int, code, says string) {
	t.Helper()
	harness.WantCode(t, err, status, code)
	if err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("got %q, which does not say %q", err, says)
	}
	settled(t, k.c, k.e.UserID)
}

// TestDeletedBrainKey: the key of an engine's snapshots that was deleted in Vault is not
// replaced: whoever takes or restores snapshots learns that it must be undeleted, and then
// both work. A destroy removes it for good.
func TestDeletedBrainKey(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	k := newKeyed(t, b, c, "u")
	k.vault(t, "data")
	fails := func() {
		t.Helper()
		k.fails(t, harness.ErrOf(c.Snapshot(ctx, "u", "")), 502, "BACKEND_ERROR", "undelete")
		k.fails(t, harness.ErrOf(c.Restore(ctx, "u", k.taken.SnapshotID)), 502, "BACKEND_ERROR", "undelete")
	}
	fails()
	unharmed(t, c, k.e, "before")
	if _, err := c.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	fails()
	k.vault(t, "undelete")
	if _, err := c.Snapshot(ctx, "u", ""); err != nil {
		t.Error(err)
	}
	if _, err := c.Restore(ctx, "u", k.taken.SnapshotID); err != nil {
		t.Error(err)
	}

	gone, err := c.Provision(ctx, "gone", "") // the cleanup destroys u
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Snapshot(ctx, "gone", ""); err != nil {
		t.Fatal(err)
	}
	mount := k.MountWith(gone.EngineID)
	if _, err := k.Vault.Logical().Delete(mount + "/data/brains/" + gone.EngineID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Destroy(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	if left, err := k.Vault.Logical().Read(mount + "/metadata/brains/" + gone.EngineID); left != nil || err != nil {
		t.Errorf("Vault has %v, %v of the key of a destroyed engine", left, err)
	}
	if has := b.tidy(t, gone.EngineID); len(has) > 0 {
		t.Errorf("snapshots %v of a destroyed engine", has)
	}
}

// TestLostBrainKey: the key of an engine's snapshots is deleted for good in Vault during a
// snapshot. That one fails, says so, and harms nothing. The next one gets a new key, which is
// an alarm in the log, because nothing decrypts the snapshots of before: whoever restores one
// learns that, and nothing is changed.
func TestLostBrainKey(t *testing.T) {
	t.Parallel()
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx := t.Context()
	k := newKeyed(t, b, c, "u")
	h := b.hold(t, k.e.EngineID, isBegin, nil)
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "u", "") })
	h.await(t)
	k.vault(t, "metadata")
	h.release()
	k.fails(t, (<-taking).err, 502, "BACKEND_ERROR", "retry: a new key is made")
	if r.Logs.Count("[ERROR]", "last_snapshot=") > 0 {
		t.Error("the first key is one that replaces another, by the log")
	}
	newest, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if r.Logs.Count("[ERROR]", "last_snapshot="+k.taken.SnapshotID) != 1 {
		t.Error("the log has no alarm about the new key")
	}
	k.fails(t, harness.ErrOf(c.Restore(ctx, "u", k.taken.SnapshotID)), 404, "SNAPSHOT_NOT_FOUND", "former key")
	k.fails(t, harness.ErrOf(c.Fork(ctx, "u", "v", k.taken.SnapshotID)), 404, "SNAPSHOT_NOT_FOUND", "former key")
	unharmed(t, c, k.e, "before")
	restored, err := c.Restore(ctx, "u", newest.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
}

// replaceKey writes another key of an engine's snapshots into Vault, with the same owner.
func replaceKey(t *testing.T, s *harness.Stores, engineID string) {
	t.Helper()
	path := s.MountWith(engineID) + "/data/brains/" + engineID
	secret, err := s.Vault.Logical().Read(path)
	if err != nil || secret == nil {
		t.Fatalf("no key: %v", err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	data, _ := secret.Data["data"].(map[string]any)
	data["identity"], data["recipient"] = other.String(), other.Recipient().String()
	if _, err := s.Vault.Logical().Write(path, map[string]any{"data": data}); err != nil {
		t.Fatal(err)
	}
}
