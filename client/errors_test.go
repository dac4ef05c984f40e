package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve returns a client of an HTTP server that does this with every request.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &Client{BaseURL: s.URL, HTTP: s.Client()}
}

const ours = `{"error": {"code": "ENGINE_BUSY", "message": "another operation", "request_id": "r1"}}`

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		retryAfter string
		body       string
		want       Error
	}{
		"ours":                  {409, "", ours, Error{Status: 409, Code: "ENGINE_BUSY", Message: "another operation", RequestID: "r1"}},
		"with Retry-After":      {503, "7", ours, Error{Status: 503, Code: "ENGINE_BUSY", Message: "another operation", RequestID: "r1", RetryAfter: 7 * time.Second}},
		"Retry-After as a date": {503, "Fri, 31 Dec 1999 23:59:59 GMT", ours, Error{Status: 503, Code: "ENGINE_BUSY", Message: "another operation", RequestID: "r1"}},
		"unknown fields":        {400, "", `{"error": {"code": "X", "new": 1}, "more": 2}`, Error{Status: 400, Code: "X"}},
		"a proxy's page":        {502, "3", "<html>Bad Gateway</html>", Error{Status: 502, RetryAfter: 3 * time.Second}},
		"empty":                 {500, "", "", Error{Status: 500}},
		"another form":          {500, "", `{"error": "text"}`, Error{Status: 500}},
		"a redirect":            {304, "", "", Error{Status: 304}},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			_, err := client.Engine(t.Context(), "u")
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if diff := cmp.Diff(c.want, *got); diff != "" {
				t.Error(diff)
			}
			if !strings.Contains(err.Error(), fmt.Sprint(c.status)) {
				t.Errorf("%q does not tell the status", err)
			}
		})
	}
}

func TestAnswersThatCannotBeRead(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"no JSON":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"wrong type": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"engine_id": 5}`) },
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"engine_id": "e"}`)
		},
		"no answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := serve(t, h).Engine(t.Context(), "u")
			var answered *Error
			if err == nil || errors.As(err, &answered) {
				t.Errorf("got %v, want an error that is no *Error", err)
			}
		})
	}
}

// calls is every call of the client.
func (c *Client) calls(ctx context.Context, user string) map[string]func() error {
	return map[string]func() error{
		"register":   func() error { _, err := c.RegisterProduct(ctx, "s", "S", nil); return err },
		"provision":  func() error { _, err := c.Provision(ctx, user, ""); return err },
		"engine":     func() error { _, err := c.Engine(ctx, user); return err },
		"start":      func() error { _, err := c.Start(ctx, user); return err },
		"stop":       func() error { _, err := c.Stop(ctx, user); return err },
		"rotate-key": func() error { _, err := c.RotateKey(ctx, user); return err },
		"destroy":    func() error { _, err := c.Destroy(ctx, user); return err },
		"ready":      func() error { return c.Ready(ctx) },
	}
}

// TestCancel: every call ends with its context, before and during the answer.
func TestCancel(t *testing.T) {
	for _, halfway := range []bool{false, true} {
		t.Run(fmt.Sprintf("halfway=%t", halfway), func(t *testing.T) {
			arrived, gone := make(chan struct{}, 1), make(chan struct{}, 1)
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // only then net/http sees the caller go
				if halfway {
					_, _ = io.WriteString(w, `{"engine_id":`)
					_ = http.NewResponseController(w).Flush()
				}
				arrived <- struct{}{}
				<-r.Context().Done()
				gone <- struct{}{}
			})
			cause := errors.New("the test's cause")
			for name := range client.calls(t.Context(), "u") {
				ctx, cancel := context.WithCancelCause(t.Context())
				done := make(chan error, 1)
				go func() { done <- client.calls(ctx, "u")[name]() }()
				<-arrived
				cancel(cause)
				if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, cause) {
					t.Errorf("%s ended with %v", name, err)
				}
				<-gone
			}
		})
	}
	t.Run("before", func(t *testing.T) {
		client := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for name, call := range client.calls(ctx, "u") {
			if err := call(); !errors.Is(err, context.Canceled) {
				t.Errorf("%s ended with %v", name, err)
			}
		}
	})
}
