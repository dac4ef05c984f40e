// Package link is a replica's way to one store (Nomad, Consul, Vault): how many
// connections it may have, what becomes of a connection that the store refused, and
// what becomes of calls while the store does not answer (Circuit).
package link

import (
	"context"
	"net/http"
	"time"
)

// How many connections a replica has to one store at most. Nomad allows an address 100
// by default and Consul 200 (http_max_conns_per_client): two replicas on one address fit,
// and leave some for others there (docs/install.md).
const (
	shortConns = 32
	// nomadLong is for the event stream; consulLong for blocking queries: four that last,
	// and one for each boot that waits for word of its process (maxStarts in scheduler).
	nomadLong, consulLong = 4, 32
	probeConns            = 4
)

// Kind is what a link has to know of its store.
type Kind struct {
	// Name is the store's, for the log and errors.
	Name string
	// Long says whether the store may take its time with a request: it waits for a
	// change, or is a stream.
	Long      func(*http.Request) bool
	longConns int
	// elsewhere says whether somebody else has to answer a request, too, so that
	// silence says nothing of the store.
	elsewhere func(*http.Request) bool
}

// Link is an http.RoundTripper to one store. Short calls have connections of their
// own, so that they never wait for those that take their time.
//
// While the store does not answer, no call is sent: calls with the context of FailFast
// fail at once, with ErrAway, and others wait until their own time limit or until the
// store answers again, whichever comes first.
type Link struct {
	kind               Kind
	short, long, probe *http.Transport
	circuit            *Circuit // nil until Watch
}

// New returns a link whose connections are made as those of t, which is not used
// itself. Watch makes it notice when the store does not answer. Close ends it.
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

// Watch gives the link the question that the store answers when it is there; it is
// asked through this link, and only while the store does not answer. It is to be called
// before the first request.
func (l *Link) Watch(ping func(context.Context) error, changed func(away bool)) {
	l.circuit = NewCircuit(ping, changed, probeEvery, probeWithin)
}

// Name is the store's.
func (l *Link) Name() string { return l.kind.Name }

// Close ends the link's own work and closes its idle connections.
func (l *Link) Close() {
	l.circuit.Close()
	for _, t := range []*http.Transport{l.short, l.long, l.probe} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}

// RoundTrip sends a request. Waiting for a connection, for the store to answer again,
// and for its limit of connections are all within the request's own time limit.
func (l *Link) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if probing(ctx) {
		return l.probe.RoundTrip(req)
	}
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
	resp, err := l.send(transport, req)
	if err == nil || long || l.kind.elsewhere != nil && l.kind.elsewhere(req) {
		return resp, err
	}
	if silent(ctx, err) && time.Since(began) >= minSilence {
		l.circuit.Silent(began)
	}
	return resp, err
}
