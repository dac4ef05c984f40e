package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestBrainVersions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a b?%.sqlite") // a path is not a URL
	b, err := OpenBrain(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Remember(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	var sync int
	var mode string
	if err := errors.Join(
		b.writer.QueryRow(`PRAGMA synchronous`).Scan(&sync),
		b.writer.QueryRow(`PRAGMA journal_mode`).Scan(&mode)); err != nil || sync != 2 || mode != "wal" {
		t.Errorf("synchronous %d, journal_mode %s, %v: want 2 (FULL), wal", sync, mode, err)
	}
	if _, err := b.writer.Exec(`PRAGMA user_version = 99`); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBrain(t.Context(), path); err == nil || !strings.Contains(err.Error(), "newer engine") {
		t.Errorf("got %v, want: newer engine", err)
	}
}

// TestReadsThatAreCutShort: stored inputs are exported at once, even if a caller cancelled
// an earlier probe.
func TestReadsThatAreCutShort(t *testing.T) {
	t.Parallel()
	b, err := OpenBrain(t.Context(), filepath.Join(t.TempDir(), "brain.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var hasty sync.WaitGroup
	for range 6 {
		hasty.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					ctx, hangUp := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
					_ = b.Probe(ctx)
					hangUp()
				}
			}
		})
	}
	for i := range 400 {
		if _, err := b.Remember(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := b.Export(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		var e struct{ Memories []Memory }
		if err := json.Unmarshal(out.Bytes(), &e); err != nil || len(e.Memories) != i+1 {
			t.Errorf("%d of %d memories were exported, %v", len(e.Memories), i+1, err)
			break
		}
	}
	close(done)
	hasty.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestBrainConcurrent writes, probes and exports concurrently.
func TestBrainConcurrent(t *testing.T) {
	t.Parallel()
	b, err := OpenBrain(t.Context(), filepath.Join(t.TempDir(), "brain.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				if _, err := b.Remember(t.Context(), fmt.Sprint(i, j)); err != nil {
					t.Error(err)
				}
				if err := b.Probe(t.Context()); err != nil {
					t.Error(err)
				}
				if err := b.Export(t.Context(), &bytes.Buffer{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var out bytes.Buffer
	if err := b.Export(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	var e struct {
		Memories []Memory
		Runs     []ProcessRun
	}
	if err := json.Unmarshal(out.Bytes(), &e); err != nil || len(e.Memories) != 40 || len(e.Runs) != 1 {
		t.Errorf("%d memories, %d runs, %v", len(e.Memories), len(e.Runs), err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLockBrain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "brain.sqlite")
	l, err := lockBrain(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockBrain(path); !errors.Is(err, ErrBrainHeld) {
		t.Errorf("got %v, want ErrBrainHeld", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = lockBrain(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
