package audit

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestPausedServer: while the server does not respond, changes are refused within the time
// limit of one call, however many there are, and at once when that is known. They are made
// as soon as the server resumes.
func TestPausedServer(t *testing.T) {
	s := ownPostgres(t)
	l := open(t, emptyDatabase(t, s))
	must(t, begun(t.Context(), l, 2*postgresConns))
	const n = 300
	const load = 4 * time.Second // the time that a busy machine needs for so many; below CallTimeout
	slowest := func() (slowest time.Duration) {
		var mu sync.Mutex
		var work sync.WaitGroup
		for i := range n {
			work.Go(func() {
				began := time.Now()
				if _, err := l.Begin(t.Context(), Entry{UserID: fmt.Sprint(i), Action: ActionStop}); !errors.Is(err, ErrUnavailable) {
					t.Errorf("got error %v, want %v", err, ErrUnavailable)
				}
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, time.Since(began))
			})
		}
		work.Wait()
		return slowest
	}
	must(t, s.Pause())
	resume := sync.OnceFunc(func() { must(t, s.Resume()) })
	t.Cleanup(resume)
	if took := slowest(); took > CallTimeout+load {
		t.Errorf("the slowest of %d took %s", n, took)
	}
	if took := slowest(); took > load {
		t.Errorf("the slowest of %d took %s when the server was known not to respond", n, took)
	}
	began := time.Now()
	wantErr(t, l.Ping(t.Context()), ErrUnavailable)
	if took := time.Since(began); took > load {
		t.Errorf("a ping took %s", took)
	}
	resume()
	began = time.Now()
	eventually(t, "the server is noticed to be back", func() error { return l.Ping(t.Context()) })
	must(t, begun(t.Context(), l, 1))
	took := time.Since(began)
	t.Logf("back after %s", took)
	if took > time.Second+load {
		t.Errorf("it took %s to notice that the server is back", took)
	}
}
