package server

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/scheduler"
)

const (
	// outageLook is the interval of the checks whether an outage is over.
	outageLook = time.Second
	// outageQuiet is how long no request may have failed before an outage counts as over.
	outageQuiet = 5 * time.Second
)

// outages logs once that requests fail because a dependency is unavailable or refuses the
// service, and once that it is available again, with the number of failed requests. A line per request would hide
// everything else in the log.
type outages struct {
	log         hclog.Logger
	health      func(context.Context) map[string]scheduler.BackendState // state of each store, by name
	look, quiet time.Duration

	ctx    context.Context
	cancel context.CancelFunc
	ends   sync.WaitGroup

	mu  sync.Mutex
	now map[string]*outage // by the name of a store or an error code
}

type outage struct {
	began, last time.Time
	failed      int
}

func newOutages(log hclog.Logger, health func(context.Context) map[string]scheduler.BackendState) *outages {
	o := &outages{log: log, health: health, look: outageLook, quiet: outageQuiet, now: map[string]*outage{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// close ends all counting, and logs the number of failed requests so far.
func (o *outages) close() {
	o.mu.Lock()
	o.cancel()
	o.mu.Unlock()
	o.ends.Wait()
}

// failed counts a request that failed because of what: the name of a store, or an error
// code. The first failed request begins an outage.
func (o *outages) failed(what, requestID string, cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx.Err() != nil {
		return
	}
	out := o.now[what]
	if out == nil {
		out = &outage{began: time.Now()}
		o.now[what] = out
		o.log.Error("requests fail; further failures are counted, and logged only at level debug", "because_of", what, "request_id", requestID, "error", cause)
		o.ends.Go(func() { o.await(what, out) })
	}
	out.failed++
	out.last = time.Now()
}

// await returns when the outage is over or the server stops.
func (o *outages) await(what string, out *outage) {
	tick := time.NewTicker(o.look)
	defer tick.Stop()
	for message := ""; message == ""; {
		select {
		case <-o.ctx.Done():
			message = "the server stops while requests fail"
		case <-tick.C:
			if o.isQuiet(out) && cmp.Or(o.health(o.ctx)[what], scheduler.BackendOK) == scheduler.BackendOK {
				message = "requests no longer fail"
			}
		}
		message = o.end(what, out, message)
	}
}

func (o *outages) isQuiet(out *outage) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Since(out.last) >= o.quiet
}

// end logs the end of an outage and returns message. If a request has failed meanwhile, it
// does nothing and returns "".
func (o *outages) end(what string, out *outage, message string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if message == "" || o.ctx.Err() == nil && time.Since(out.last) < o.quiet {
		return ""
	}
	delete(o.now, what)
	o.log.Warn(message, "because_of", what, "failed", out.failed, "seconds", int(time.Since(out.began).Seconds()))
	return message
}
