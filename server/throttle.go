package server

import (
	"container/list"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// mostThrottled is how many sources are throttled separately, the most recent ones: about
// 2 MB.
const mostThrottled = 10_000

// throttle limits how many calls with wrong keys a source may make. It is asked only about
// calls whose key turned out to be wrong: a call with a right key is served whatever its
// neighbours behind the same address do. What it limits is therefore what wrong calls are
// told and leave behind, and not the read of Consul by which a platform key turns out to be
// wrong. A key is safe from guesses by its length alone.
type throttle struct {
	every time.Duration // a source may make a wrong call in each such time; 0: any number
	burst time.Duration // how far ahead of that it may be

	mu      sync.Mutex
	sources map[netip.Prefix]*list.Element
	recent  list.List // of *throttled, most recent first
}

type throttled struct {
	source netip.Prefix
	// due is when the calls so far are allowed by every alone (the theoretical arrival time
	// of the generic cell rate algorithm).
	due time.Time
}

// newThrottle allows a number of wrong calls per minute and source; 0: any number.
func newThrottle(perMinute int) *throttle {
	t := &throttle{burst: time.Minute, sources: map[netip.Prefix]*list.Element{}}
	if perMinute > 0 {
		t.every = time.Minute / time.Duration(perMinute)
	}
	return t
}

// wrong counts a wrong call, and returns 0, or how long its source must wait before the next
// wrong call is not refused. Refused calls do not prolong that.
func (t *throttle) wrong(source netip.Prefix, now time.Time) (wait time.Duration) {
	if t.every == 0 {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.sources[source]
	if at == nil {
		if len(t.sources) >= mostThrottled {
			oldest := t.recent.Back()
			delete(t.sources, oldest.Value.(*throttled).source)
			t.recent.Remove(oldest)
		}
		at = t.recent.PushFront(&throttled{source: source})
		t.sources[source] = at
	}
	t.recent.MoveToFront(at)
	s := at.Value.(*throttled)
	if s.due.Before(now) {
		s.due = now
	}
	if ahead := s.due.Add(t.every).Sub(now); ahead > t.burst {
		return ahead - t.burst
	}
	s.due = s.due.Add(t.every)
	return 0
}

// sourceOf returns where a request comes from: an IPv4 address, or the /64 of an IPv6
// address, whose owner has all addresses in it. It is the address of the connection, because
// a caller can put anything into a header.
func sourceOf(r *http.Request) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	source, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return source
}

// sourceName returns a source as it is logged.
func sourceName(source netip.Prefix) string {
	switch {
	case !source.IsValid():
		return "unknown"
	case source.IsSingleIP():
		return source.Addr().String()
	}
	return source.String()
}
