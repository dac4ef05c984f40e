package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// script responds to successive calls, and records their times.
type script struct {
	began   time.Time
	answers []any // an error, or a status with an optional Retry-After: "503 7"
	at      []time.Duration
}

func (s *script) RoundTrip(*http.Request) (*http.Response, error) {
	s.at = append(s.at, time.Since(s.began))
	next := s.answers[min(len(s.at), len(s.answers))-1]
	if err, failed := next.(error); failed {
		return nil, err
	}
	status, after, _ := strings.Cut(next.(string), " ")
	body := `{"error": {"code": "BACKEND_UNAVAILABLE", "message": "m", "request_id": "r"}}`
	if status == "200" {
		body = `{}`
	}
	if rest, ok := strings.CutPrefix(status, "proxy-"); ok {
		status, body = rest, "<html>"
	}
	resp := &http.Response{Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	resp.StatusCode = map[string]int{"200": 200, "409": 409, "429": 429, "500": 500, "502": 502, "503": 503}[status]
	if after != "" {
		resp.Header.Set("Retry-After", after)
	}
	return resp, nil
}

var (
	refused = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	reset   = &net.OpError{Op: "read", Err: syscall.ECONNRESET}
)

// TestRetry: which calls are retried, and when.
func TestRetry(t *testing.T) {
	const s = time.Second
	policy := RetryPolicy{Attempts: 4, MinWait: s, MaxWait: 10 * s}
	get := func(ctx context.Context, c *Client) error { return second(c.Engine(ctx, "u")) }
	start := func(ctx context.Context, c *Client) error { return second(c.Start(ctx, "u")) }
	for name, c := range map[string]struct {
		policy  RetryPolicy
		call    func(context.Context, *Client) error
		answers []any
		calls   int
		ok      bool
		waits   []time.Duration // minimum waits between the calls; twice that is the maximum
	}{
		"OK at once":                   {policy, get, []any{"200"}, 1, true, nil},
		"without a policy":             {RetryPolicy{}, get, []any{"503 1", "200"}, 1, false, nil},
		"503":                          {policy, get, []any{"503 2", "503 3", "200"}, 3, true, []time.Duration{2 * s, 3 * s}},
		"429":                          {policy, start, []any{"429 2", "200"}, 2, true, []time.Duration{2 * s}},
		"503 of a start":               {policy, start, []any{"503 1", "200"}, 2, true, []time.Duration{s}},
		"without Retry-After":          {policy, get, []any{"503", "503", "503", "200"}, 4, true, []time.Duration{s / 2, s, 2 * s}},
		"too often":                    {policy, get, []any{"503 1"}, 4, false, nil},
		"a wait that is too long":      {policy, get, []any{"503 11", "200"}, 1, false, nil},
		"409":                          {policy, get, []any{"409 1", "200"}, 1, false, nil},
		"500":                          {policy, get, []any{"500", "200"}, 1, false, nil},
		"502":                          {policy, get, []any{"502", "200"}, 1, false, nil},
		"a proxy's 503, read":          {policy, get, []any{"proxy-503 1", "200"}, 2, true, nil},
		"a proxy's 503, start":         {policy, start, []any{"proxy-503 1", "200"}, 1, false, nil},
		"a proxy's 502, read":          {policy, get, []any{"proxy-502", "200"}, 1, false, nil},
		"refused, read":                {policy, get, []any{refused, "200"}, 2, true, nil},
		"refused, start: nothing sent": {policy, start, []any{refused, "200"}, 2, true, nil},
		"broken, read":                 {policy, get, []any{reset, io.EOF, "200"}, 3, true, nil},
		"broken, start":                {policy, start, []any{reset, "200"}, 1, false, nil},
		"broken, provision": {policy, func(ctx context.Context, c *Client) error {
			return second(c.Provision(ctx, "u", ""))
		}, []any{reset, "200"}, 1, false, nil},
		"broken, provision with a key": {policy, func(ctx context.Context, c *Client) error {
			return second(c.Provision(ctx, "u", "", IdempotencyKey("k")))
		}, []any{reset, "200"}, 2, true, nil},
		"broken, admit": {policy, func(ctx context.Context, c *Client) error {
			return second(c.Admit(ctx, "u", AdmitOptions{AutoProvision: true}))
		}, []any{reset, "200"}, 2, true, nil},
		"broken, rotate": {policy, func(ctx context.Context, c *Client) error {
			return second(c.RotateKey(ctx, "u"))
		}, []any{reset, "200"}, 1, false, nil},
		"broken, destroy": {policy, func(ctx context.Context, c *Client) error {
			return second(c.Destroy(ctx, "u"))
		}, []any{reset, "200"}, 1, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				script := &script{began: time.Now(), answers: c.answers}
				err := c.call(t.Context(), &Client{BaseURL: "http://h", HTTP: &http.Client{Transport: script}, Retry: c.policy})
				if (err == nil) != c.ok || len(script.at) != c.calls {
					t.Fatalf("%v after %d calls", err, len(script.at))
				}
				for i, want := range c.waits {
					if got := script.at[i+1] - script.at[i]; got < want || got > 2*want {
						t.Errorf("wait %d took %s, want %s", i, got, want)
					}
				}
			})
		})
	}
}

// TestRetryEndsWithTheContext: no wait exceeds it.
func TestRetryEndsWithTheContext(t *testing.T) {
	t.Run("the deadline comes first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			script := &script{began: time.Now(), answers: []any{"503 5"}}
			ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
			defer cancel()
			c := &Client{BaseURL: "http://h", HTTP: &http.Client{Transport: script}, Retry: RetryPolicy{Attempts: 9}}
			if _, err := c.Engine(ctx, "u"); !errors.Is(err, ErrBackendUnavailable) {
				t.Errorf("got %v", err)
			}
			if want := []time.Duration{0, 5 * time.Second}; !slices.Equal(script.at, want) || time.Since(script.began) != 5*time.Second {
				t.Errorf("called at %v, ended after %s", script.at, time.Since(script.began))
			}
		})
	})
	t.Run("cancelled while waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			script := &script{began: time.Now(), answers: []any{"503 5"}}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(3*time.Second, cancel)
			c := &Client{BaseURL: "http://h", HTTP: &http.Client{Transport: script}, Retry: RetryPolicy{Attempts: 9}}
			_, err := c.Engine(ctx, "u")
			if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrBackendUnavailable) || time.Since(script.began) != 3*time.Second {
				t.Errorf("got %v after %s", err, time.Since(script.began))
			}
		})
	})
}
