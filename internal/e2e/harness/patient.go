package harness

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/pause"
)

// patient retries calls that got 503 because a store or the audit log did not respond in
// time, as products should. No test disturbs the stores of a shared stack, or a database
// that the harness made, so such a response only means that the machine is busy.
type patient struct {
	base http.RoundTripper

	mu    sync.Mutex
	hosts map[string]patience
}

type patience struct {
	t       *testing.T
	matches *regexp.Regexp
}

// storeAway and auditAway match such responses. One that is about the audit log changed
// nothing. busy matches the response to a call that was sent again while the first one is still
// being undone.
var (
	storeAway = regexp.MustCompile(`"BACKEND_UNAVAILABLE".*\((?:Nomad|Consul|Vault)\) cannot be reached`)
	auditAway = regexp.MustCompile(`"BACKEND_UNAVAILABLE".*(\((?:Nomad|Consul|Vault|its database)\) cannot be reached|not connected to the registry \(Consul\) yet)`)
	busy      = regexp.MustCompile(`"ENGINE_BUSY"`)
)

// with retries the calls to a service until its test ends. all: also those that the audit log
// did not allow, or that came before its session. A test that brings its own database or ends
// sessions may want these.
func (p *patient) with(t *testing.T, host string, all bool) {
	matches := storeAway
	if all {
		matches = auditAway
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts[host] = patience{t, matches}
	t.Cleanup(func() { p.without(host) })
}

func (p *patient) without(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.hosts, host)
}

func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	with, known := p.hosts[r.URL.Host]
	again := known && (r.Body == nil || r.GetBody != nil) && r.URL.Path != "/ready" && r.URL.Path != "/health" // whoever asks for these asks again
	p.mu.Unlock()
	sent := 0
	for began := time.Now(); ; {
		resp, err := p.base.RoundTrip(r)
		sent++
		if err != nil || !again || resp.StatusCode != http.StatusServiceUnavailable && (resp.StatusCode != http.StatusConflict || sent == 1) {
			return resp, err
		}
		if time.Since(began) > Patience { // it is away: no other call waits as long
			p.without(r.URL.Host)
			return resp, nil
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		matches := with.matches
		if resp.StatusCode == http.StatusConflict {
			matches = busy
		}
		if resp.Body = io.NopCloser(bytes.NewReader(body)); !matches.Match(body) {
			return resp, nil
		}
		with.t.Logf("%s %s is sent again after %s", r.Method, r.URL.Path, body)
		select {
		case <-r.Context().Done():
			return resp, nil
		case <-time.After(time.Second):
		}
		if r = r.Clone(r.Context()); r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// ProvisionSurely provisions an engine for a user that nobody else provisions. The call may
// have been sent again while the first one continued: then that one's engine counts.
func ProvisionSurely(ctx context.Context, c *client.Client, userID string) error {
	for {
		err := ErrOf(c.Provision(ctx, userID, ""))
		switch {
		case errors.Is(err, client.ErrEngineAlreadyExists):
			return nil
		case errors.Is(err, client.ErrEngineBusy) && pause.For(ctx, time.Second):
			continue
		}
		return err
	}
}
