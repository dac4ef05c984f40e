package brains

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestSparseBrain: a brain of 10 GiB, most of which are holes, is copied, stored and restored
// as what it contains.
func TestSparseBrain(t *testing.T) {
	t.Parallel()
	const size, most = 10 << 30, 16 << 20
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	offsets := []int64{0, 5<<30 + 12345, size - int64(len(data))}
	f, err := os.OpenFile(filepath.Join(brainOf(t, s, e.EngineID), "sparse"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range offsets {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	taken, err := c.Snapshot(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	if taken.Bytes < size || taken.StoredBytes > most {
		t.Errorf("a brain of %d bytes has %d bytes in the store", taken.Bytes, taken.StoredBytes)
	}
	restored, err := c.Restore(ctx, "u", taken.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
	path := filepath.Join(brainOf(t, s, e.EngineID), "sparse")
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != size || info.Blocks*512 > most {
		t.Errorf("the restored file has %d bytes, of which %d are on the disk", info.Size, info.Blocks*512)
	}
	if f, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(data))
	for _, at := range offsets {
		if _, err := f.ReadAt(got, at); err != nil || !bytes.Equal(got, data) {
			t.Errorf("other bytes at %d, %v", at, err)
		}
	}
}

// addFile puts a file of so many random bytes into an engine's brain. same fails unless the
// engine's brain has that file.
func addFile(t *testing.T, s *harness.Stores, engineID string, size int) (same func()) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	if err := os.WriteFile(filepath.Join(brainOf(t, s, engineID), "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(brainOf(t, s, engineID), "data")); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the restored file is another one, %v", err)
		}
	}
}

// brainOf returns the directory of an engine's brain on this machine.
func brainOf(t *testing.T, s *harness.Stores, engineID string) string {
	t.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
	if err != nil {
		t.Fatal(err)
	}
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, &nomad.QueryOptions{Prefix: "engine-" + engineID})
	if err != nil {
		t.Fatal(err)
	}
	for _, claim := range job.TaskGroups[0].Volumes {
		for _, v := range volumes {
			if v.Name != claim.Source {
				continue
			}
			full, _, err := s.Nomad.HostVolumes().Get(v.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			return full.HostPath
		}
	}
	t.Fatalf("engine %s has no brain in Nomad", engineID)
	return ""
}
