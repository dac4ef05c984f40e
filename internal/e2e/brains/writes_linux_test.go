package brains

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the engine's brain

	"github.com/septemberai/orch/brain/archive"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/brain/transfer"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/jobs"
)

// TestSnapshotsUnderWrites: an engine writes all the time to SQLite in WAL mode. Each of its
// snapshots is a whole database, with every write that was acknowledged before the call.
// ORCH_TEST_SNAPSHOTS is how many are taken instead of 12.
func TestSnapshotsUnderWrites(t *testing.T) {
	t.Parallel()
	snapshots, every := 12, 5*time.Millisecond
	if n, err := strconv.Atoi(os.Getenv("ORCH_TEST_SNAPSHOTS")); err == nil && n > 0 {
		snapshots, every = n, 20*time.Millisecond // so that the brain stays small
	}
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars("ORCH_IDLE_TIMEOUT_S=0")) // nobody asks the service for it
	c := r.Product(t, nil)
	ctx := t.Context()
	e := harness.Provision(t, c, "u", "")
	var mu sync.Mutex
	acknowledged := 0 // the inputs from 0 are acknowledged, one after another
	over := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			body := map[string]string{"input": fmt.Sprint(n)}
			if code, err := harness.EngineCall(ctx, e, e.APIKey, http.MethodPost, "/execute", body, nil); err != nil || code != http.StatusOK {
				t.Errorf("write %d: %d, %v", n, code, err)
				return
			}
			mu.Lock()
			acknowledged = n + 1
			mu.Unlock()
		}
	})
	defer writing.Wait()
	defer sync.OnceFunc(func() { close(over) })()
	identity := harness.OpenStores(t, harness.Shared)
	fetcher, err := transfer.New(transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer fetcher.Close()
	var frozen []int64
	began := time.Now()
	for n := range snapshots {
		mu.Lock()
		before := acknowledged
		mu.Unlock()
		taken, err := c.Snapshot(ctx, "u", "")
		if err != nil {
			t.Fatalf("snapshot %d: %v", n, err)
		}
		frozen = append(frozen, int64(taken.FrozenMS))
		if taken.Changed != 0 {
			t.Errorf("snapshot %d: %d entries changed while the engine was frozen", n, taken.Changed)
		}
		of := store.Snapshot{EngineID: e.EngineID, SnapshotID: taken.SnapshotID}
		m, err := b.Store.Manifest(ctx, of)
		if err != nil {
			t.Fatal(err)
		}
		url, err := b.ObjectURL(ctx, of, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		object := fetcher.Download(ctx, url, m.StoredBytes)
		dir := t.TempDir()
		_, err = archive.Unpack(ctx, object, m.Content, identity.BrainKey(e.EngineID), dir)
		_ = object.Close()
		if err != nil {
			t.Fatalf("snapshot %d: %v", n, err)
		}
		if err := holds(filepath.Join(dir, "brain.sqlite"), before); err != nil {
			t.Errorf("snapshot %d: %v", n, err)
		}
		if err := errors.Join(os.RemoveAll(dir), c.DeleteSnapshot(ctx, "u", taken.SnapshotID)); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(frozen)
	evaluations := 0
	all, _, err := identity.Nomad.Evaluations().List(nil)
	if err != nil {
		t.Error(err)
	}
	for _, one := range all {
		if strings.HasPrefix(one.JobID, jobs.WorkerPrefix+e.EngineID) {
			evaluations++
		}
	}
	mu.Lock()
	t.Logf("%d snapshots in %s under %d writes, frozen for %d ms (median), at most %d ms; %d evaluations of Nomad", snapshots, time.Since(began).Round(time.Second), acknowledged, frozen[len(frozen)/2], frozen[len(frozen)-1], evaluations)
	if acknowledged < snapshots {
		t.Errorf("only %d writes", acknowledged)
	}
	mu.Unlock()
	unharmed(t, c, e, "0")
}

// holds returns an error unless a brain is intact and holds the inputs from 0 to n-1.
func holds(path string, n int) error {
	db, err := sql.Open("sqlite", "file:"+path+"?mode=rw")
	if err != nil {
		return err
	}
	defer db.Close()
	var intact string
	if err := db.QueryRow(`PRAGMA integrity_check`).Scan(&intact); err != nil || intact != "ok" {
		return fmt.Errorf("integrity_check: %s, %w", intact, err)
	}
	var inputs, distinct, last int
	if err := db.QueryRow(`SELECT count(*), count(DISTINCT input), coalesce(max(CAST(input AS INTEGER)), -1) FROM memories`).Scan(&inputs, &distinct, &last); err != nil {
		return err
	}
	if inputs != distinct || inputs != last+1 || inputs < n {
		return fmt.Errorf("%d inputs, %d distinct, up to %d; %d were acknowledged before", inputs, distinct, last, n)
	}
	return nil
}
