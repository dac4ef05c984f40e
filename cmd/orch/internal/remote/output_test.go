package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/client"
)

func TestTable(t *testing.T) {
	var b bytes.Buffer
	tb := &table{}
	tb.row("NAME", "N", "AT")
	tb.row("a\tb\x1b[2J\u202e", 12, time.Time{})
	tb.row("", new(7), time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600)))
	tb.row("ü", (*int)(nil), (*time.Time)(nil))
	tb.fact("absent", "")
	tb.fact("there", "x")
	if err := tb.print(&b); err != nil {
		t.Fatal(err)
	}
	want := "NAME      N   AT\na\uFFFDb\uFFFD[2J\uFFFD  12  -\n-         7   2026-01-02 02:04:05Z\nü         -   -\nthere     x\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestDescribe(t *testing.T) {
	answered := &client.Error{Status: 503, Code: "CAPACITY_EXHAUSTED", Message: "no \x1broom", RequestID: "r1", RetryAfter: 10 * time.Second}
	for want, err := range map[string]error{
		"no \uFFFDroom\n  code CAPACITY_EXHAUSTED, request r1, try again in 10s":     fmt.Errorf("wrapped: %w", answered),
		"the answer has status 502 and is not the service's; does ORCH_URL name it?": &client.Error{Status: 502},
		"-timeout":      &url.Error{Op: "Get", URL: "u", Err: context.DeadlineExceeded},
		urlVar:          &url.Error{Op: "Get", URL: "u", Err: syscall.ECONNREFUSED},
		"another thing": errors.New("another thing"),
	} {
		if got := describe(err); !strings.Contains(got, want) {
			t.Errorf("%v is described as %q, want %q", err, got, want)
		}
	}
}

// TestProgress: a terminal shows that a call takes long, and nothing is left of
// it; a short call and a script see nothing.
func TestProgress(t *testing.T) {
	for name, c := range map[string]struct {
		tty   bool
		takes time.Duration
		shown string
	}{
		"long on a terminal":  {true, 1700 * time.Millisecond, clearLine + "booting a\uFFFD ... 0s" + clearLine + "booting a\uFFFD ... 1s" + clearLine + "booting a\uFFFD ... 1s" + clearLine},
		"short on a terminal": {true, 400 * time.Millisecond, ""},
		"long in a script":    {false, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("")
				w.ErrTTY = c.tty
				in := &invocation{env: &w.Env, common: &common{}}
				got, err := wait(t.Context(), in, "booting a\x1b", func(context.Context) (int, error) {
					<-time.After(c.takes)
					return 5, context.Canceled
				})
				if got != 5 || !errors.Is(err, context.Canceled) || w.err.String() != c.shown {
					t.Errorf("got %d, %v, stderr %q", got, err, w.err.String())
				}
			})
		})
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
			t.Errorf("%q is taken", s)
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
