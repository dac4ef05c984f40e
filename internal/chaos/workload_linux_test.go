package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/septemberai/orch/client"
)

const (
	// callers is the number of concurrent callers; some of them share a user.
	callers = 10
	// patience is how long a caller waits for a response: longer than any operation should
	// take.
	patience = 75 * time.Second
	// enginePatience is how long a caller waits for an engine.
	enginePatience = 5 * time.Second
)

// workload is callers that use the service as products do.
type workload struct {
	rig     *rig
	history history
	brains  brains
	// still is read-locked by each caller during a call, and locked to stop all callers.
	still sync.RWMutex
}

// dialer returns a dial function with a time limit.
func dialer(within time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return (&net.Dialer{Timeout: within, KeepAlive: 5 * time.Second}).DialContext
}

// tagged sends the request id in its context.
type tagged struct{ *http.Transport }

type requestID struct{}

func (t tagged) RoundTrip(r *http.Request) (*http.Response, error) {
	if id, ok := r.Context().Value(requestID{}).(string); ok {
		r = r.Clone(r.Context())
		r.Header.Set("X-Request-Id", id)
	}
	return t.Transport.RoundTrip(r)
}

// run keeps the callers busy until working ends; calls in progress finish first, unless ctx
// ends.
func (w *workload) run(ctx, working context.Context, seed uint64) {
	var wg sync.WaitGroup
	for i := range callers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
		wg.Go(func() {
			for pause(working, time.Duration(rng.IntN(300))*time.Millisecond) {
				w.still.RLock()
				w.act(ctx, rng)
				w.still.RUnlock()
			}
		})
	}
	wg.Wait()
}

// often is how often each product is called: the engines of the last one must have time to
// fall asleep.
var often = []int{0, 0, 0, 0, 1, 1, 1, 1, 2, 2}

// act makes one call, and calls the engine in its response.
func (w *workload) act(ctx context.Context, rng *rand.Rand) {
	p := w.rig.products[often[rng.IntN(len(often))]]
	c := call{}
	total := 0
	for _, m := range mix {
		total += m.weight
	}
	n := rng.IntN(total)
	for _, m := range mix {
		if n -= m.weight; n < 0 {
			c = m.call
			break
		}
	}
	replica := rng.IntN(replicas)
	user, leaves := p.pick(rng.IntN(len(p.seats)))
	if leaves != "" {
		w.retire(ctx, p, leaves, replica)
	}
	c.product, c.user = p.Slug, user
	e := w.do(ctx, p, &c, replica)
	if c.answer.unknown() && rng.IntN(2) == 0 { // like a client that fails over
		again := call{kind: c.kind, autoProvision: c.autoProvision, autoWake: c.autoWake, product: c.product, user: c.user}
		e = w.do(ctx, p, &again, 1-replica)
	}
	if e == nil || e.URL == "" || e.APIKey == "" || e.Status != "" && e.Status != "running" {
		return
	}
	for range 1 + rng.IntN(3) {
		w.brains.write(ctx, e)
	}
}

// retire destroys the engine of a user that makes no more calls, because the next user
// needs its place. What remains after a few attempts is destroyed at the end.
func (w *workload) retire(ctx context.Context, p *product, user string, replica int) {
	for range 5 {
		c := call{kind: destroy, product: p.Slug, user: user}
		if w.do(ctx, p, &c, replica); c.answer.ok() || c.answer.code == "ENGINE_NOT_FOUND" {
			return
		}
		replica = 1 - replica
	}
}

// do makes a call to a replica, records the response, and returns the engine in it.
func (w *workload) do(ctx context.Context, p *product, c *call, replica int) *client.Engine {
	c.replica = string(replicaName(replica))
	api := &client.Client{BaseURL: w.rig.urls[replicaName(replica)], PlatformKey: p.PlatformAPIKey, HTTP: w.rig.http}
	w.history.invoke(c)
	c.requestID = fmt.Sprintf("chaos-%d", c.invoked)
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, requestID{}, c.requestID), patience)
	defer cancel()
	e := new(client.Engine)
	var err error
	switch c.kind {
	case provision:
		e, err = api.Provision(ctx, c.user, "")
	case start:
		_, err = api.Start(ctx, c.user)
	case stop:
		_, err = api.Stop(ctx, c.user)
	case rotate:
		c.answer.key, err = api.RotateKey(ctx, c.user)
	case destroy:
		e, err = api.Destroy(ctx, c.user)
		c.answer.engineID = e.EngineID
	case get:
		e, err = api.Engine(ctx, c.user)
	case admit:
		var a *client.Admission
		a, err = api.Admit(ctx, c.user, client.AdmitOptions{AutoProvision: c.autoProvision, AutoWake: c.autoWake})
		c.answer.denial = a.Reason
		if a.Engine != nil {
			e = a.Engine
		}
	}
	c.answer.status = http.StatusOK
	var bad *client.Error
	switch {
	case errors.As(err, &bad):
		c.answer.status, c.answer.code, c.answer.err, c.answer.again = bad.Status, string(bad.Code), bad.Message, bad.RetryAfter > 0
	case err != nil:
		c.answer.status, c.answer.err = 0, err.Error()
	case c.kind == provision || c.kind == admit || c.kind == get:
		c.answer.engineID, c.answer.key, c.answer.state = e.EngineID, e.APIKey, e.Status
	}
	if err != nil {
		c.answer.engineID, c.answer.key = "", ""
	}
	w.history.done(c)
	return e
}

// brains is what was written to engines and acknowledged.
type brains struct {
	mu     sync.Mutex
	told   map[string][]told // by engine_id, in order of acknowledgement
	number int
}

type told struct {
	text  string
	acked bool
}

// write writes to an engine, and records whether it acknowledged that. An engine may refuse
// or be unreachable, because it may be stopped at any moment.
func (b *brains) write(ctx context.Context, e *client.Engine) {
	b.mu.Lock()
	b.number++
	text := fmt.Sprintf("%s %d", e.EngineID, b.number)
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	err := engineAPI(e).Do(ctx, http.MethodPost, "/execute", map[string]string{"input": text}, nil)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status < 500 {
		return // it has another key now, or is shutting down: nothing was written
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.told == nil {
		b.told = map[string][]told{}
	}
	b.told[e.EngineID] = append(b.told[e.EngineID], told{text, err == nil})
}

// engineAPI returns a client of an engine with its key.
func engineAPI(e *client.Engine) *client.Client {
	t := &http.Transport{DialContext: dialer(time.Second), DisableKeepAlives: true}
	return &client.Client{BaseURL: e.URL, HTTP: &http.Client{Transport: keyed{t, e.APIKey}}}
}

type keyed struct {
	*http.Transport
	key string
}

func (k keyed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Engine-Key", k.key)
	return k.Transport.RoundTrip(r)
}
