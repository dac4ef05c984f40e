package brains

import (
	"context"
	"io"
	"net/http"
	"testing"

	"golang.org/x/time/rate"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestSlowLink: the store is at the end of a slow link. A snapshot and a restore take their
// time. During the snapshot the engine works, except for the moment of the copy.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	const perSecond, size = 512 << 10, 3 << 20
	b := newBucket(t)
	r := harness.StartService(t, harness.Shared, b.vars())
	c := r.Product(t, nil)
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	e := harness.Provision(t, c, "u", "")
	harness.Remember(t, e, e.APIKey, "before")
	same := addFile(t, s, e.EngineID, size)
	b.fails(e.EngineID, b.slow(perSecond))
	meanwhile := func(what string, done func() bool) (calls int) {
		for ; !done(); calls++ {
			harness.Remember(t, e, e.APIKey, what)
			if err := harness.InState(t, c, "u", "running"); err != nil {
				t.Error(err)
			}
		}
		return calls
	}
	taking := begin(func() (*client.Snapshot, error) { return c.Snapshot(ctx, "u", "") })
	var taken result[*client.Snapshot]
	calls := meanwhile("during the snapshot", func() bool {
		select {
		case taken = <-taking:
			return true
		default:
			return false
		}
	})
	if taken.err != nil {
		t.Fatal(taken.err)
	}
	t.Logf("%d calls during the snapshot, which froze the engine for %d ms", calls, taken.of.FrozenMS)
	if calls < 3 {
		t.Errorf("the engine answered %d calls during the snapshot", calls)
	}
	unharmed(t, c, e, "before", "during the snapshot")
	restored, err := c.Restore(ctx, "u", taken.of.SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, restored, restored.APIKey).Knows("before"); err != nil {
		t.Error(err)
	}
	same()
	b.noUploads(t)
}

// slow passes the content of objects on at a limited rate, in both directions.
func (b *bucket) slow(perSecond int) hook {
	return func(w http.ResponseWriter, r *http.Request) bool {
		l := &link{ctx: r.Context(), limit: rate.NewLimiter(rate.Limit(perSecond), 16<<10), ResponseWriter: w, ReadCloser: r.Body}
		r.Body = l
		b.forward.ServeHTTP(l, r)
		return true
	}
}

type link struct {
	http.ResponseWriter
	io.ReadCloser
	ctx   context.Context
	limit *rate.Limiter
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p[:min(len(p), l.limit.Burst())])
	if werr := l.limit.WaitN(l.ctx, n); werr != nil {
		return 0, werr
	}
	return n, err
}

func (l *link) Write(p []byte) (done int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), l.limit.Burst())]
		if err = l.limit.WaitN(l.ctx, len(part)); err == nil {
			_, err = l.ResponseWriter.Write(part)
			done, p = done+len(part), p[len(part):]
		}
	}
	return done, err
}
