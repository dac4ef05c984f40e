package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// Patience is the deadline of conditions in tests: longer than anything takes on a busy
// machine. Benchmarks measure how long things take.
const Patience = 5 * time.Minute

// Eventually waits until check returns nil, up to a deadline. It waits a tenth of the
// elapsed time between two checks, within limits, because a check may cost the agents ten
// lists.
func Eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		waited := time.Since(began)
		if waited >= Patience {
			// Also printed at once: a later timeout of the whole suite drops what tests logged.
			fmt.Fprintf(os.Stderr, "--- FAIL: %s: %s: not within %s: %v\n", t.Name(), what, Patience, err)
			t.Fatalf("%s: not within %s: %v", what, Patience, err)
		}
		time.Sleep(min(max(waited/10, 20*time.Millisecond), 250*time.Millisecond))
	}
}

// Patiently repeats a call for as long as the service is changing the engine by itself
// (ENGINE_BUSY), as it may with each failed engine at any time, and returns the call's error.
func Patiently(t *testing.T, what string, call func() error) (err error) {
	t.Helper()
	Eventually(t, what, func() error {
		if err = call(); errors.Is(err, client.ErrEngineBusy) {
			return err
		}
		return nil
	})
	return err
}

// WantCode fails unless err is this error response.
func WantCode(t *testing.T, err error, status int, code string) *client.Error {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Status != status || string(e.Code) != code {
		t.Fatalf("got %v, want %d %s", err, status, code)
	}
	if e.RequestID == "" || e.Message == "" {
		t.Fatalf("response %+v lacks a request id or a message", e)
	}
	if (status == 503 || status == 429) && e.RetryAfter < time.Second {
		t.Fatalf("%d without Retry-After", status)
	}
	return e
}

// ErrOf returns the error of a call whose result does not matter.
func ErrOf[T any](_ T, err error) error { return err }

// Outcomes runs n calls concurrently and counts their outcomes.
func Outcomes(n int, call func(i int) error) map[string]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	counts := map[string]int{}
	for i := range n {
		wg.Go(func() {
			what := OutcomeOf(call(i))
			mu.Lock()
			defer mu.Unlock()
			counts[what]++
		})
	}
	wg.Wait()
	return counts
}

// OutcomeOf returns the outcome of a call as a word.
func OutcomeOf(err error) string {
	var e *client.Error
	switch {
	case errors.As(err, &e):
		return fmt.Sprintf("%d %s", e.Status, e.Code)
	case err != nil:
		return err.Error()
	}
	return "ok"
}

// Tail returns the end of a text, at most n bytes.
func Tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// FreeAddr returns an unused loopback address.
func FreeAddr(t *testing.T) string {
	t.Helper()
	for range 200 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(aboveEphemeral+rand.IntN(portsAbove)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		_ = l.Close()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}

// Ports above Linux's default range of ephemeral ports (net.ipv4.ip_local_port_range). No
// outgoing connection gets one between FreeAddr and the start of the process that uses it.
const aboveEphemeral, portsAbove = 61_000, 4_000
