package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// begun begins n rows concurrently, and returns the errors.
func begun(ctx context.Context, l *Log, n int) error {
	var work sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		work.Go(func() {
			_, errs[i] = l.Begin(ctx, Entry{ProductID: "p", UserID: fmt.Sprint(i), Action: ActionStop})
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// TestFailover promotes the standby while the old primary continues as read-only: no change
// is refused, and all rows are where the next one is written.
func TestFailover(t *testing.T) {
	primary := ownPostgres(t)
	address := emptyDatabase(t, primary)
	standby, err := primary.Standby()
	t.Cleanup(standby.Stop)
	must(t, err)
	both, err := url.Parse(address)
	must(t, err)
	second, err := url.Parse(standby.URL("postgres"))
	must(t, err)
	both.Host += "," + second.Host
	l := open(t, both.String())
	const changes = 40
	must(t, begun(t.Context(), l, changes))

	must(t, primary.FailOver(standby))
	must(t, begun(t.Context(), l, changes))
	must(t, l.Ping(t.Context()))
	if got := len(list(t, l, Query{ProductID: "p"})); got != 2*changes {
		t.Errorf("%d rows on the new primary, want %d", got, 2*changes)
	}
	primary.Halt()
	must(t, begun(t.Context(), l, changes))
}

// TestReadOnlyServer: without another server, changes are refused while this one is
// read-only, and not for longer.
func TestReadOnlyServer(t *testing.T) {
	s := ownPostgres(t)
	l := open(t, emptyDatabase(t, s))
	must(t, begun(t.Context(), l, 20))
	must(t, s.ReadOnly(true))
	eventually(t, "a server that takes no writes is noticed", func() error {
		if _, err := l.Begin(t.Context(), Entry{}); err == nil {
			return errors.New("it took one")
		}
		return nil
	})
	wantErr(t, begun(t.Context(), l, 20), ErrUnavailable)
	wantErr(t, l.Ping(t.Context()), ErrUnavailable)
	must(t, s.ReadOnly(false))
	eventually(t, "it takes writes again", func() error { return begun(t.Context(), l, 1) })
	must(t, begun(t.Context(), l, 20))
}

// TestSlowServer: a server that takes seconds to begin a session is slow, but available.
func TestSlowServer(t *testing.T) {
	to, err := url.Parse(emptyDatabase(t, postgres(t)))
	must(t, err)
	at, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := to.Host
	to.Host = at.Addr().String()
	var slow atomic.Int64
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := at.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				timer := time.NewTimer(time.Duration(slow.Load()))
				defer timer.Stop()
				<-timer.C
				s, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				work.Go(func() {
					_, _ = io.Copy(s, c)
					_ = s.Close()
				})
				_, _ = io.Copy(c, s)
			})
		}
	})
	t.Cleanup(func() { // after the log is closed
		_ = at.Close()
		work.Wait()
	})
	to.RawQuery = "sslmode=disable" // one connection for one session
	l := open(t, to.String())
	must(t, begun(t.Context(), l, 1))
	slow.Store(int64(CallTimeout / 2))
	must(t, begun(t.Context(), l, postgresConns)) // concurrently: more connections than it allows
}
