package server

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/secrets"
)

// TestWrongKeysAreLogged: calls with wrong keys are counted by source and logged at
// intervals, without the keys; the sources with the most have lines of their own.
func TestWrongKeysAreLogged(t *testing.T) {
	s := newCutOff(t)
	s.wrongKeys.every = 10 * time.Millisecond
	wrong := secrets.NewPlatformKey() + "x"
	call := func(source string, admin bool) {
		path, header := "/engines/u", "X-Platform-Key"
		if admin {
			path, header = "/products", "X-Admin-Key"
		}
		r := httptest.NewRequest("GET", path, nil)
		r.RemoteAddr = source + ":1234"
		r.Header.Set(header, wrong)
		if w := s.answer(r); w.Code != 401 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	lines := func() (found []string) {
		for line := range strings.Lines(s.logs.String()) {
			if strings.Contains(line, "calls with wrong keys") {
				found = append(found, line)
			}
		}
		return found
	}
	await := func(n int) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); len(lines()) < n; time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%d lines, want %d", len(lines()), n)
			}
		}
	}
	call("192.0.2.1", true)
	await(1)
	if got := lines()[0]; !strings.Contains(got, "[WARN]") || !strings.Contains(got, "source=192.0.2.1 platform_key=0 admin_key=1") {
		t.Errorf("got %q", got)
	}
	s.wrongKeys.mu.Lock()
	s.wrongKeys.every = time.Hour
	s.wrongKeys.mu.Unlock()
	for i := range 3 * mostSources {
		call(fmt.Sprintf("10.%d.%d.1", i/250, i%250), false)
	}
	for range 10 {
		call("10.0.7.1", false)
	}
	if n := max(len(s.wrongKeys.logged), len(s.wrongKeys.audited)); n > mostSources+1 {
		t.Errorf("%d sources are kept", n)
	}
	s.wrongKeys.say()
	got := lines()[1:]
	total := 0
	for _, line := range got {
		var n int
		_, after, _ := strings.Cut(line, "platform_key=")
		if _, err := fmt.Sscan(after, &n); err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if len(got) != loggedSources+1 || total != 3*mostSources+10 {
		t.Errorf("%d lines about %d calls", len(got), total)
	}
	if !strings.Contains(strings.Join(got, ""), "source=10.0.7.1 platform_key=11") {
		t.Errorf("the source with most has no line:\n%s", strings.Join(got, ""))
	}
	if strings.Contains(s.logs.String(), wrong) {
		t.Error("the log has a key")
	}
}
