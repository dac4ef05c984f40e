package server

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

// TestThrottle: a source may make as many wrong calls as the setting says at once, and then
// one at a time. Refused calls do not prolong that, other sources do not count, and the
// number of sources in memory is limited.
func TestThrottle(t *testing.T) {
	const perMinute = 6 // one every 10 s
	k, now := newThrottle(perMinute), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	for i := range perMinute {
		if wait := k.wrong(one, now); wait > 0 {
			t.Fatalf("call %d must wait %s", i+1, wait)
		}
	}
	for range 1000 {
		if wait := k.wrong(one, now); wait != 10*time.Second {
			t.Fatalf("it must wait %s", wait)
		}
	}
	if wait := k.wrong(other, now); wait > 0 {
		t.Errorf("another source must wait %s", wait)
	}
	now = now.Add(10 * time.Second)
	if first, second := k.wrong(one, now), k.wrong(one, now); first > 0 || second != 10*time.Second {
		t.Errorf("after that time: %s, then %s", first, second)
	}
	for i := range 3 * mostThrottled {
		k.wrong(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), now)
	}
	if len(k.sources) != mostThrottled || k.recent.Len() != mostThrottled {
		t.Errorf("%d sources in memory, %d in the list", len(k.sources), k.recent.Len())
	}
	none := newThrottle(0)
	for range 1000 {
		if none.wrong(one, now) > 0 {
			t.Fatal("it is throttled without a limit")
		}
	}
}

func TestSourceOf(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[2001:db8::1]:80": "2001:db8::/64", "[2001:db8::ffff:1]:80": "2001:db8::/64",
		"[2001:db8:0:1::1]:80": "2001:db8:0:1::/64", "[fe80::1%eth0]:80": "fe80::/64", "@": "unknown", "": "unknown",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = remote
		if got := sourceName(sourceOf(r)); got != want {
			t.Errorf("%q is %s, want %s", remote, got, want)
		}
	}
}

// TestTooManyWrongKeys: a source with too many wrong keys gets 429 for further ones, whatever
// its headers say. A right key from the same address is let in. The audit log has one entry.
func TestTooManyWrongKeys(t *testing.T) {
	s := newCutOff(t)
	const perMinute, more = 3, 20
	s.Limit(Edge{MaxRequests: 10, WrongKeys: perMinute})
	call := func(source, header, key string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "/status", nil)
		r.RemoteAddr = source
		r.Header.Set(header, key)
		r.Header.Set("X-Forwarded-For", fmt.Sprintf("198.51.100.%d", time.Now().UnixNano()%250))
		return s.answer(r)
	}
	for range perMinute {
		want(t, call("192.0.2.1:80", "X-Admin-Key", "nonsense"), 401, engine.InvalidAdminKey)
	}
	for i := range more {
		w := call("192.0.2.1:"+strconv.Itoa(1000+i), "X-Platform-Key", "nonsense")
		want(t, w, 429, engine.TooManyWrongKeys)
		if after, err := strconv.Atoi(w.Header().Get("Retry-After")); err != nil || after > 60/perMinute {
			t.Errorf("Retry-After is %q", w.Header().Get("Retry-After"))
		}
	}
	want(t, call("192.0.2.1:80", "X-Admin-Key", adminKey), 503, engine.BackendUnavailable)
	want(t, call("192.0.2.2:80", "X-Admin-Key", "nonsense"), 401, engine.InvalidAdminKey)
	s.wrongKeys.say()
	for range more {
		call("192.0.2.3:80", "X-Admin-Key", "nonsense")
	}
	s.wrongKeys.say() // too early for another entry
	rows := func() []audit.Entry {
		page, err := s.scheduler.Audit(t.Context(), audit.Query{Action: audit.ActionAuthFailed, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		return page.Entries
	}
	got := rows()
	if len(got) != 1 {
		t.Fatalf("%d entries", len(got))
	}
	m := got[0].Metadata
	if m["admin_key"] != perMinute+1.0 || m["platform_key"] != float64(more) || m["refused"] != float64(more) || len(m["sources"].([]any)) != 2 {
		t.Errorf("the entry has %v", m)
	}
	if err := s.Close(); err != nil { // writes the rest
		t.Fatal(err)
	}
	if got = rows(); len(got) != 2 || got[0].Metadata["admin_key"] != float64(more) {
		t.Errorf("at the end: %v", got)
	}
}
