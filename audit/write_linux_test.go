package audit

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

func TestBeginComplete(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l, ctx := open(t, url), t.Context()
		at := time.Date(2026, 5, 4, 3, 2, 1, 123456789, time.FixedZone("", 7200))
		e := Entry{
			Timestamp: at, ProductID: "p1", UserID: "a b/ü|1", Action: ActionProvision, Actor: "acme", RequestID: "r1",
			Outcome: "not told yet", Metadata: map[string]any{"image": "e:1", "nul": "a\x00b"}, DurationMS: ptr(int64(7)),
		}
		id, err := l.Begin(ctx, e)
		must(t, err)
		want := e
		want.ID, want.Timestamp = id, at.UTC().Truncate(time.Microsecond)
		want.Outcome, want.DurationMS = OutcomeInterrupted, nil
		if diff := cmp.Diff([]Entry{want}, list(t, l, Query{})); diff != "" {
			t.Fatalf("begun (-want +got):\n%s", diff)
		}

		must(t, l.Complete(ctx, id, Completion{
			EngineID: "e1", Metadata: map[string]any{"boot_ms": 120, "image": "e:2"}, Duration: 1500 * time.Millisecond,
		}))
		want.Outcome, want.EngineID, want.DurationMS = OutcomeOK, "e1", ptr(int64(1500))
		want.Metadata = map[string]any{"image": "e:2", "nul": "a\x00b", "boot_ms": 120.0}
		must(t, l.Complete(ctx, id, Completion{Outcome: "INTERNAL_ERROR", EngineID: "e2", Duration: time.Hour}))
		must(t, l.Complete(ctx, id, Completion{}))
		if diff := cmp.Diff([]Entry{want}, list(t, l, Query{})); diff != "" {
			t.Fatalf("completed (-want +got):\n%s", diff)
		}
		n, err := l.Numbers(ctx, "p1")
		must(t, err)
		if n.TotalProvisions != 1 {
			t.Errorf("completed three times, counted %d times", n.TotalProvisions)
		}
	})
}

func TestCompleteUnknown(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		wantErr(t, open(t, url).Complete(t.Context(), 4711, Completion{}), ErrNotFound)
	})
}

func TestCompleteAsInterrupted(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l, ctx := open(t, url), t.Context()
		id, err := l.Begin(ctx, Entry{Action: ActionStop})
		must(t, err)
		must(t, l.Complete(ctx, id, Completion{Outcome: OutcomeInterrupted, Duration: time.Second}))
		must(t, l.Complete(ctx, id, Completion{Outcome: OutcomeOK}))
		if got := list(t, l, Query{})[0]; got.Outcome != OutcomeInterrupted || *got.DurationMS != 1000 {
			t.Errorf("got %s after %d ms: the first completion was overwritten", got.Outcome, *got.DurationMS)
		}
	})
}

func TestRecord(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l, ctx := open(t, url), t.Context()
		before := time.Now().Add(-time.Millisecond)
		must(t, l.Record(ctx, Entry{ProductID: "p1", UserID: "u\x00\xff", Action: ActionHealthFailed, Actor: "system", Outcome: "ENGINE_BOOT_FAILED"}))
		must(t, l.Record(ctx, Entry{ProductID: "p1", Action: ActionSleep, DurationMS: ptr(int64(3))}))
		got := list(t, l, Query{})
		if got[1].UserID != "u\uFFFD" || got[1].Outcome != "ENGINE_BOOT_FAILED" || got[1].DurationMS != nil || got[1].Metadata == nil {
			t.Errorf("got %+v", got[1])
		}
		if got[0].Outcome != OutcomeOK || *got[0].DurationMS != 3 || got[0].Timestamp.Before(before) || got[0].Timestamp.Location() != time.UTC {
			t.Errorf("got %+v", got[0])
		}
		must(t, l.Complete(ctx, got[1].ID, Completion{Outcome: OutcomeOK}))
		if got := list(t, l, Query{}); got[1].Outcome != "ENGINE_BOOT_FAILED" {
			t.Error("a recorded row was completed")
		}
	})
}

func TestMetadataWithoutJSON(t *testing.T) {
	l := open(t, sqliteURL(t))
	bad := map[string]any{"f": func() {}}
	if _, err := l.Begin(t.Context(), Entry{Metadata: bad}); err == nil {
		t.Error("Begin took it")
	}
	if err := l.Record(t.Context(), Entry{Metadata: bad}); err == nil {
		t.Error("Record took it")
	}
	id, err := l.Begin(t.Context(), Entry{})
	must(t, err)
	if err := l.Complete(t.Context(), id, Completion{Metadata: bad}); err == nil {
		t.Error("Complete took it")
	}
}

// TestConcurrent makes changes in 20 goroutines: each row is begun and completed, each is
// counted once, and two completers of one row agree.
func TestConcurrent(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		const workers, rounds = 20, 10
		l, ctx := open(t, url), t.Context()
		var work sync.WaitGroup
		errs := make(chan error, workers*rounds*4)
		for w := range workers {
			work.Go(func() {
				for r := range rounds {
					id, err := l.Begin(ctx, Entry{ProductID: "p1", UserID: fmt.Sprint(w), Action: ActionProvision})
					errs <- err
					var both sync.WaitGroup
					for range 2 {
						both.Go(func() {
							errs <- l.Complete(ctx, id, Completion{Metadata: map[string]any{"boot_ms": r}})
						})
					}
					both.Wait()
					_, err = l.Entries(ctx, Query{ProductID: "p1", Limit: 10})
					errs <- err
				}
			})
		}
		work.Wait()
		close(errs)
		for err := range errs {
			must(t, err)
		}
		n, err := l.Numbers(ctx, "p1")
		must(t, err)
		want := Numbers{Provisions1h: workers * rounds, TotalProvisions: workers * rounds, AvgBootMS: 4.5}
		if diff := cmp.Diff(want, n); diff != "" {
			t.Errorf("numbers (-want +got):\n%s", diff)
		}
	})
}

// TestCrash kills a process that has begun a change: its row shows that, and another
// process may complete it.
func TestCrash(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		id, kill := startChild(t, url)
		kill()
		l := open(t, url)
		got := list(t, l, Query{ProductID: "p1"})
		if len(got) != 1 || got[0].ID != id || got[0].Outcome != OutcomeInterrupted || got[0].DurationMS != nil {
			t.Fatalf("after the crash: %+v", got)
		}
		must(t, l.Complete(t.Context(), id, Completion{Outcome: "BOOT_TIMEOUT"}))
		if got := list(t, l, Query{}); got[0].Outcome != "BOOT_TIMEOUT" {
			t.Errorf("completed after the crash: %+v", got[0])
		}
	})
}

func TestCallerGone(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l := open(t, url)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := l.Begin(ctx, Entry{})
		wantErr(t, err, ErrUnavailable)
		wantErr(t, err, context.Canceled)
		if got := list(t, l, Query{}); len(got) != 0 {
			t.Errorf("rows: %+v", got)
		}
		must(t, l.Ping(t.Context()))
	})
}
