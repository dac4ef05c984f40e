package server

import (
	"net/http"
	"testing"
	"time"
)

func TestPreference(t *testing.T) {
	for _, c := range []struct {
		lines   []string
		wait    time.Duration
		applied string
	}{
		{nil, 0, ""}, {[]string{""}, 0, ""}, {[]string{"return=minimal, handling=strict"}, 0, ""},
		{[]string{"respond-async"}, 0, "respond-async"}, {[]string{"Respond-Async"}, 0, "respond-async"}, {[]string{"wait=7"}, 7 * time.Second, "wait=7"},
		{[]string{"respond-async, wait=10"}, 10 * time.Second, "respond-async, wait=10"}, {[]string{`wait="3" ; x=y`, "respond-async;z"}, 3 * time.Second, "respond-async, wait=3"},
		{[]string{"wait=1, wait=2"}, time.Second, "wait=1"}, {[]string{"wait=-1"}, 0, ""}, {[]string{"wait"}, 0, ""}, {[]string{"wait=99999999999"}, 0, ""}, {[]string{"wait=soon, respond-async"}, 0, "respond-async"},
	} {
		if wait, applied := preference(http.Header{"Prefer": c.lines}); wait != c.wait || applied != c.applied {
			t.Errorf("%q: got %s, %q, want %s, %q", c.lines, wait, applied, c.wait, c.applied)
		}
	}
}
