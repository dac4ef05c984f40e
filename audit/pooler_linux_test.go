package audit

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/testpg"
)

// TestPooler connects two replicas to PostgreSQL through PgBouncer, which gives each
// transaction another connection: every kind of call works.
func TestPooler(t *testing.T) {
	testpg.NeedPooler(t)
	s := ownPostgres(t)
	at, err := url.Parse(emptyDatabase(t, s))
	must(t, err)
	pooler, err := s.Pool(3)
	t.Cleanup(pooler.Stop)
	must(t, err)
	address := pooler.URL(strings.TrimPrefix(at.Path, "/"))
	replicas := []*Log{open(t, address), open(t, address)}
	// Each call has a time limit, and on a busy machine a server's commit takes long.
	const changes, callers = 200, 40
	calling := make(chan struct{}, callers)
	var work sync.WaitGroup
	errs := make(chan error, 4*changes)
	for i := range changes {
		l := replicas[i%2]
		l.Denied("p", fmt.Sprint(i), "engine_stopped")
		work.Go(func() {
			calling <- struct{}{}
			defer func() { <-calling }()
			id, err := l.Begin(t.Context(), Entry{ProductID: "p", UserID: fmt.Sprint(i), Action: ActionProvision})
			errs <- err
			errs <- l.Complete(t.Context(), id, Completion{Metadata: map[string]any{"boot_ms": 1}})
			_, err = l.Numbers(t.Context(), "p")
			errs <- err
			_, err = l.Entries(t.Context(), Query{ProductID: "p", Action: ActionProvision, Limit: 5})
			errs <- err
		})
	}
	work.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	for _, l := range replicas {
		l.flush(t.Context())
		must(t, l.Ping(t.Context()))
	}
	n, err := replicas[0].Numbers(t.Context(), "p")
	must(t, err)
	if n.TotalProvisions != changes {
		t.Errorf("%d provisions are counted, want %d", n.TotalProvisions, changes)
	}
	if got := len(list(t, replicas[1], Query{Action: ActionAdmitDenied})); got != changes {
		t.Errorf("%d rows of denied admits, want %d", got, changes)
	}
}
