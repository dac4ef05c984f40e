package commands

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// log is an audit log with the form of the API.
type log struct {
	mu   sync.Mutex
	rows []client.AuditEntry // oldest first
}

func (l *log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, _ := time.Parse(time.RFC3339Nano, r.URL.Query().Get("since"))
	list := client.AuditList{Entries: []client.AuditEntry{}}
	for _, e := range slices.Backward(l.rows) {
		if !e.Timestamp.Before(since) {
			list.Entries = append(list.Entries, e)
		}
	}
	_ = json.NewEncoder(w).Encode(list)
}

// TestTail: each row is printed once, and once more when it has ended, whenever it appears.
func TestTail(t *testing.T) {
	began := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	row := func(id int64, at time.Duration, over bool) client.AuditEntry {
		e := client.AuditEntry{ID: id, Timestamp: began.Add(at), Action: "start", Outcome: "interrupted", UserID: "u", Actor: "acme"}
		if over {
			e.Outcome, e.DurationMS = "ok", new(int64(250))
		}
		return e
	}
	l := &log{rows: []client.AuditEntry{row(1, -time.Hour, true), row(2, -time.Second, true), row(3, 0, true), row(4, time.Second, false)}}
	srv := httptest.NewServer(l)
	defer srv.Close()
	w := newWorld(t, "")
	tl := &tail{in: &invocation{Call: &cmdline.Call{Env: &w.Env}, client: &client.Client{BaseURL: srv.URL, HTTP: srv.Client()}}, seen: map[int64]client.AuditEntry{}}
	printed := func() (lines []string) {
		for line := range strings.Lines(w.out.String()) {
			f := strings.Fields(line)
			lines = append(lines, f[1]+" "+strings.Join(f[3:len(f)-2], " "))
		}
		w.out.Reset()
		return lines
	}
	want := func(when string, lines ...string) {
		t.Helper()
		if got := printed(); !slices.Equal(got, lines) {
			t.Errorf("%s: got %q, want %q", when, got, lines)
		}
	}
	if err := tl.begin(t.Context(), 2, true); err != nil {
		t.Fatal(err)
	}
	want("at first", "12:00:00Z ok 250 ms", "12:00:01Z in progress ...")
	poll := func(change func()) {
		t.Helper()
		l.mu.Lock()
		change()
		l.mu.Unlock()
		if err := tl.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	poll(func() {})
	want("nothing happened")
	poll(func() {
		l.rows[3] = row(4, time.Second, true)
		l.rows = append(l.rows, row(5, time.Minute, false))
	})
	want("one is over, one begins", "12:00:01Z ok 250 ms", "12:01:00Z in progress ...")
	poll(func() { l.rows = slices.Insert(l.rows, 4, row(6, 10*time.Second, true)) })
	want("one appears late", "12:00:10Z ok 250 ms")
	poll(func() { l.rows = append(l.rows, row(7, 5*time.Minute, true)) })
	want("much later", "12:05:00Z ok 250 ms")
	poll(func() { l.rows[5] = row(5, time.Minute, true) })
	want("an old one is over", "12:01:00Z ok 250 ms")
	poll(func() {})
	want("nothing is left")
	if len(tl.seen) != 1 {
		t.Errorf("%d rows are remembered, want the newest alone", len(tl.seen))
	}

	// After an empty log, every row is new.
	l.rows = nil
	tl = &tail{in: tl.in, seen: map[int64]client.AuditEntry{}}
	if err := tl.begin(t.Context(), 20, true); err != nil {
		t.Fatal(err)
	}
	poll(func() { l.rows = append(l.rows, row(1, 0, true), row(2, time.Second, true)) })
	want("the first rows", "12:00:00Z ok 250 ms", "12:00:01Z ok 250 ms")
}
