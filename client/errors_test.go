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

// serve returns a client of an HTTP server with this handler.
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
		"a redirect":            {307, "", "", Error{Status: 307}},
		"Retry-After below 1":   {503, "-1", ours, Error{Status: 503, Code: "ENGINE_BUSY", Message: "another operation", RequestID: "r1"}},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.Header().Set("Location", "/elsewhere")
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
				t.Errorf("%q does not contain the status", err)
			}
			if errors.Is(err, ErrEngineBusy) != (c.want.Code == ErrEngineBusy) || errors.Is(err, ErrEngineNotFound) || errors.Is(err, Code("")) {
				t.Errorf("%v is not its own code alone", err)
			}
		})
	}
}

func TestAnswersThatCannotBeRead(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"no JSON":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"wrong type": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"engine_id": 5}`) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
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

// second returns only the error of a call.
func second[T any](_ T, err error) error { return err }

// calls returns every call of the client.
func (c *Client) calls(ctx context.Context, user string) map[string]func() error {
	return map[string]func() error{
		"provision":       func() error { return second(c.Provision(ctx, user, "")) },
		"engine":          func() error { return second(c.Engine(ctx, user)) },
		"admit":           func() error { return second(c.Admit(ctx, user, AdmitOptions{AutoWake: true})) },
		"start":           func() error { return second(c.Start(ctx, user)) },
		"stop":            func() error { return second(c.Stop(ctx, user)) },
		"rotate-key":      func() error { return second(c.RotateKey(ctx, user)) },
		"keep-awake":      func() error { return second(c.KeepAwake(ctx, user, 1500*time.Millisecond)) },
		"destroy":         func() error { return second(c.Destroy(ctx, user)) },
		"snapshot":        func() error { return second(c.Snapshot(ctx, user, "l")) },
		"snapshot plain":  func() error { return second(c.Snapshot(ctx, user, "")) },
		"snapshots":       func() error { return second(c.Snapshots(ctx, user, SnapshotPage{Limit: 5, Cursor: "c+d"})) },
		"delete snapshot": func() error { return c.DeleteSnapshot(ctx, user, "s/t") },
		"restore":         func() error { return second(c.Restore(ctx, user, "s")) },
		"restore newest":  func() error { return second(c.Restore(ctx, user, "")) },
		"fork":            func() error { return second(c.Fork(ctx, user, "v", "")) },
		"fork snapshot":   func() error { return second(c.Fork(ctx, user, "v", "s")) },
		"engines":         func() error { return second(c.Engines(ctx, EngineFilter{Status: Running, Limit: 5, Cursor: "c+d"})) },
		"status":          func() error { return second(c.Status(ctx)) },
		"metrics":         func() error { return second(c.Metrics(ctx)) },
		"audit":           func() error { return second(c.Audit(ctx, AuditFilter{UserID: user, Since: time.Unix(0, 0)})) },
		"audit of one":    func() error { return second(c.Audit(ctx, AuditFilter{ProductID: "p"})) },
		"register":        func() error { return second(c.RegisterProduct(ctx, "s", "S", &Policy{MaxEngines: new(0)})) },
		"products":        func() error { return second(c.Products(ctx)) },
		"product":         func() error { return second(c.Product(ctx, "p/q")) },
		"policy":          func() error { return second(c.SetPolicy(ctx, "p", Policy{EngineImage: "e"})) },
		"platform key":    func() error { return second(c.RotatePlatformKey(ctx, "p", time.Minute)) },
		"delete":          func() error { return c.DeleteProduct(ctx, "p") },
		"registry":        func() error { return second(c.Registry(ctx)) },
		"recovery":        func() error { return second(c.PlanRecovery(ctx)) },
		"recover":         func() error { return c.RecoverRegistry(ctx) },
		"rekey":           func() error { return second(c.Rekey(ctx)) },
		"quarantine":      func() error { return second(c.Quarantine(ctx)) },
		"adopt":           func() error { return second(c.Adopt(ctx, "e/f", "p", user)) },
		"adopt own":       func() error { return second(c.Adopt(ctx, "e", "", "")) },
		"stored":          func() error { return second(c.StoredEngines(ctx, SnapshotPage{Limit: 5, Cursor: "c+d"})) },
		"import":          func() error { return second(c.Import(ctx, "e/f", "s")) },
		"import newest":   func() error { return second(c.Import(ctx, "e", "")) },
		"discard":         func() error { return c.Discard(ctx, "e/f") },
		"health":          func() error { return second(c.Health(ctx)) },
		"live":            func() error { return c.Live(ctx) },
		"ready":           func() error { return c.Ready(ctx) },
	}
}

// TestCancel: every call ends with its context, before and during the response.
func TestCancel(t *testing.T) {
	for _, halfway := range []bool{false, true} {
		t.Run(fmt.Sprintf("halfway=%t", halfway), func(t *testing.T) {
			arrived, gone := make(chan struct{}, 1), make(chan struct{}, 1)
			client := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // only then net/http notices that the caller has disconnected
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

// TestHealth: a degraded replica is a result; a proxy's response is an error.
func TestHealth(t *testing.T) {
	for body, degraded := range map[string]bool{
		`{"status": "degraded", "subsystems": {"vault": "unavailable"}}`: true, "<html>": false, ours: false,
	} {
		h, err := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, body)
		}).Health(t.Context())
		if degraded != (err == nil) || degraded && (h.Status != "degraded" || h.Subsystems["vault"] != "unavailable") {
			t.Errorf("%s: got %+v, %v", body, h, err)
		}
	}
}
