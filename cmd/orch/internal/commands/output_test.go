package commands

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

func TestDescribe(t *testing.T) {
	answered := &client.Error{Status: 503, Code: "CAPACITY_EXHAUSTED", Message: "no \x1broom", RequestID: "r1", RetryAfter: 10 * time.Second}
	for want, err := range map[string]error{
		"no \uFFFDroom\n  code CAPACITY_EXHAUSTED, request r1, retry in 10s":                              fmt.Errorf("wrapped: %w", answered),
		"the response has status 502 and is not from the service; check the address (-address, ORCH_URL)": &client.Error{Status: 502},
		"-timeout":      &url.Error{Op: "Get", URL: "u", Err: context.DeadlineExceeded},
		urlVar:          &url.Error{Op: "Get", URL: "u", Err: syscall.ECONNREFUSED},
		"another thing": errors.New("another thing"),
	} {
		if got := describe(err); !strings.Contains(got, want) {
			t.Errorf("%v is described as %q, want %q", err, got, want)
		}
	}
}

func TestMoments(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"": {}, "90m": now.Add(-90 * time.Minute), "2026-01-31T13:00:00.5+02:00": now.Add(-time.Hour + time.Second/2), "0s": now,
	} {
		if got, err := moments(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"-1h", "yesterday", "2026-01-31"} {
		if _, err := moments(s, now); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{"/usr/bin/orch": "/usr/bin/orch", "/a b/o'x": `'/a b/o'\''x'`} {
		if got := quote(s); got != want {
			t.Errorf("%s: got %s", s, got)
		}
	}
}
