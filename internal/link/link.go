// Package link manages a replica's connections to one store (Nomad, Consul, Vault): their
// number, calls that the store refused because of its limits, and calls while the store
// does not respond (Circuit).
package link

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/internal/traces"
)

// Maximum numbers of connections per replica and store. By default Nomad allows 100 per
// client address and Consul 200 (http_max_conns_per_client): enough for two replicas at one
// address and for some other clients (docs/install.md).
const (
	shortConns = 32
	// nomadLong is for the event stream. consulLong is for blocking queries: four permanent
	// ones, and one for each boot that waits for news of its process (maxStarts in
	// scheduler).
	nomadLong, consulLong = 4, 32
	probeConns            = 4
)

// Kind describes what a Link must know about its store.
type Kind struct {
	// Name is the store's name, for the log and errors.
	Name string
	// Long reports whether the store may delay the response to a request, because it waits
	// for a change or sends a stream.
	Long      func(*http.Request) bool
	longConns int
	// elsewhere reports whether a request also needs a response from another host, so that
	// its timeout shows nothing about the store.
	elsewhere func(*http.Request) bool
	// needs returns the right that a request needs, for the log.
	needs func(*http.Request) string
}

// Link is an http.RoundTripper to one store. Short calls have separate connections, so that
// they never wait for long ones.
//
// While the store does not respond, no call is sent: calls with the context of FailFast
// fail at once with ErrAway; others wait until the store responds again, at most until
// their own time limit.
type Link struct {
	kind               Kind
	short, long, probe *http.Transport
	circuit            *Circuit      // nil before Watch
	refused            func(Refusal) // nil before TellRefusals
	observer           Observer      // nil: nobody
	refusedAt          atomic.Int64  // when the store last refused a call because of its limits, in Unix ns
}

// New returns a Link whose connections are configured like those of t; t itself is not
// used. Call Watch to detect that the store does not respond. Close ends the Link.
func New(kind Kind, t *http.Transport) *Link {
	of := func(conns int) *http.Transport {
		t := t.Clone()
		t.MaxConnsPerHost, t.MaxIdleConns, t.MaxIdleConnsPerHost = conns, conns, conns
		return t
	}
	l := &Link{kind: kind, short: of(shortConns), probe: of(probeConns)}
	if kind.longConns > 0 {
		l.long = of(kind.longConns)
	}
	return l
}

// Watch sets the ping that the store responds to while it is available. ping must call the
// store through this link; it is called only while the store does not respond. Call Watch
// before the first request.
func (l *Link) Watch(ping func(context.Context) error, changed func(away bool)) {
	l.circuit = NewCircuit(ping, changed, probeEvery, probeWithin)
}

// Name returns the store's name.
func (l *Link) Name() string { return l.kind.Name }

// Close ends the link's own work, and closes its idle connections.
func (l *Link) Close() {
	l.circuit.Close()
	l.CloseIdle()
}

// CloseIdle closes the connections that no call is using. Calls in progress are not
// affected.
func (l *Link) CloseIdle() {
	for _, t := range []*http.Transport{l.short, l.long, l.probe} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}

// RoundTrip sends a request. The request's time limit includes waiting for a connection,
// for the store to respond again, and for its limit of connections.
func (l *Link) RoundTrip(req *http.Request) (*http.Response, error) {
	began, ctx := time.Now(), req.Context()
	if probing(ctx) {
		resp, err := l.probe.RoundTrip(req)
		l.observe(req, resultOf(resp, err), time.Since(began))
		return resp, err
	}
	resp, err := l.roundTrip(ctx, req)
	result := resultOf(resp, err)
	took := time.Since(began)
	switch {
	case err == nil && l.look(req, resp):
		result = ResultDenied
	case result == ResultDenied && (ctx.Value(tryingKey{}) != nil || !l.kind.denies(req, resp)):
		result = ResultClient
	}
	l.observe(req, result, took)
	return resp, err
}

func (l *Link) roundTrip(ctx context.Context, req *http.Request) (*http.Response, error) {
	if err := l.circuit.Pass(ctx); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	transport, long := l.short, false
	if l.long != nil && l.kind.Long(req) {
		transport, long = l.long, true
	}
	began := time.Now()
	resp, err := l.send(transport, traces.Outgoing(req))
	if err == nil || long || l.kind.elsewhere != nil && l.kind.elsewhere(req) {
		return resp, err
	}
	if silent(ctx, err) && time.Since(began) >= minSilence {
		l.circuit.Silent(began)
	}
	return resp, err
}
