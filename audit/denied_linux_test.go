package audit

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// counted adds up the counts in the rows of denials, by user and reason.
func counted(t *testing.T, l *Log, product string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, e := range list(t, l, Query{ProductID: product, Action: ActionAdmitDenied}) {
		counts[e.UserID+" "+e.Metadata["reason"].(string)] += int(e.Metadata["count"].(float64))
	}
	return counts
}

func TestDenied(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l := open(t, url)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for range 50 {
					l.Denied("p", fmt.Sprint("u", i%2), "engine_not_found")
					l.Denied("p", "u0", "engine_stopped")
				}
			})
		}
		wg.Add(1)
		go func() { // rows grow while they are counted
			defer wg.Done()
			for range 10 {
				l.flush(context.Background())
			}
		}()
		wg.Wait()
		l.flush(t.Context())
		got := counted(t, l, "p")
		for key, want := range map[string]int{"u0 engine_not_found": 500, "u1 engine_not_found": 500, "u0 engine_stopped": 1000} {
			if got[key] != want {
				t.Errorf("%s: %d, want %d", key, got[key], want)
			}
		}
		if rows := len(list(t, l, Query{})); rows > 6 { // one or two minutes
			t.Errorf("%d rows", rows)
		}
	})
}

// While the database is unavailable, nothing blocks and nothing is lost, within limits.
func TestDeniedWhileAway(t *testing.T) {
	s := ownPostgres(t)
	l := open(t, emptyDatabase(t, s))
	s.Halt()
	for i := range 3 * maxDenials {
		l.Denied("p", fmt.Sprint("u", i), "r")
	}
	l.flush(t.Context())
	for range 5 {
		l.Denied("p", "u1", "r")
	}
	if n := len(l.denials.counts); n > 2*maxDenials+1 {
		t.Errorf("%d counts are kept", n)
	}
	must(t, s.Start())
	eventually(t, "the counts are written", func() error {
		l.flush(context.Background())
		l.denials.mu.Lock()
		defer l.denials.mu.Unlock()
		if n := len(l.denials.counts); n > 0 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	var total int64
	must(t, l.db.reader.QueryRowContext(t.Context(), "SELECT SUM(denials) FROM audit_entries").Scan(&total))
	if want := int64(3*maxDenials + 5); total != want {
		t.Errorf("%d denials are written, want %d", total, want)
	}
}

// Run writes the remaining counts when it ends.
func TestRunFlushesAtTheEnd(t *testing.T) {
	l := open(t, sqliteURL(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()
	l.Denied("p", "u", "r")
	cancel()
	<-ended
	if got := counted(t, l, "p"); got["u r"] != 1 {
		t.Errorf("got %v", got)
	}
}
