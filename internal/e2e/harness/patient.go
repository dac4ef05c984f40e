package harness

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"
)

// patient retries calls that got 503 because a store or the audit log did not respond in
// time, as products should. No test disturbs the stores of a shared stack, so such a
// response only means that the machine is busy.
type patient struct {
	base http.RoundTripper

	mu    sync.Mutex
	hosts map[string]*testing.T
}

// storeAway matches such a response. One that is about the audit log changed nothing.
var storeAway = regexp.MustCompile(`"BACKEND_UNAVAILABLE".*\((?:Nomad|Consul|Vault|its database)\) cannot be reached`)

// with retries the calls to a service until its test ends, and then reports how many.
func (p *patient) with(t *testing.T, host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts[host] = t
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.hosts, host)
	})
}

func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	t := p.hosts[r.URL.Host]
	again := t != nil && (r.Body == nil || r.GetBody != nil)
	p.mu.Unlock()
	for began := time.Now(); ; {
		resp, err := p.base.RoundTrip(r)
		if err != nil || !again || resp.StatusCode != http.StatusServiceUnavailable || time.Since(began) > Patience {
			return resp, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		if resp.Body = io.NopCloser(bytes.NewReader(body)); !storeAway.Match(body) {
			return resp, nil
		}
		t.Logf("%s %s is sent again after %s", r.Method, r.URL.Path, body)
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
