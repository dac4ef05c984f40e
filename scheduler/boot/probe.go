package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/internal/traces"
)

// maxHealthBody limits how much of an engine's response is read, in bytes.
const maxHealthBody = 64 << 10

const (
	// StillAnswers is the time limit for responses of an engine that should be frozen. An
	// engine that still responds answersToo times, each time also within three times its
	// usual response time, does not freeze: its first process is not the serving one.
	// Several responses are needed, because the first may have been on its way.
	StillAnswers = 250 * time.Millisecond
	answersToo   = 3
	// SlowAnswer limits that time for engines with a slow usual response.
	SlowAnswer = 500 * time.Millisecond
	// answerEvery is the interval of these probes of one engine.
	answerEvery = 50 * time.Millisecond
	// busyTimeout limits the check whether an engine is busy, which is repeated every
	// busyRetry.
	busyTimeout = 3 * time.Second
	busyRetry   = 200 * time.Millisecond
)

// Prober sends requests directly to engines: health checks without a key, and key proofs
// with keys.
//
// It sends nothing over TLS unless it is of one engine (Of), whose name must be in the
// certificate.
type Prober struct {
	client      *http.Client
	dialer      *hedged
	connections int // to one engine
	authorities Authorities
	name        string // in the certificate of its engine; empty: it is of no engine
}

// NewProber returns a Prober with a time limit per request. authorities may be nil.
func NewProber(timeout time.Duration, authorities Authorities) *Prober {
	dialer := &hedged{dial: new(net.Dialer).DialContext, within: timeout}
	return &Prober{dialer: dialer, connections: maxProbes, authorities: authorities, client: &http.Client{
		Timeout: timeout,
		// An engine must not redirect the service to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true},
	}}
}

// Talk returns a Prober for several successive requests to one engine. They use one
// connection, if the engine keeps it, so that one process responds to all of them, and
// connecting is done once. end closes the connection.
func (p *Prober) Talk() (one *Prober, end func()) {
	transport := &http.Transport{DialContext: p.dialer.DialContext, MaxConnsPerHost: 1, TLSClientConfig: p.trust()}
	one = p.over(transport)
	one.connections = 1
	return one, transport.CloseIdleConnections
}

// done reads the rest of a response, up to a limit, because only then its connection can be
// used again.
func done(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHealthBody))
	_ = resp.Body.Close()
}

// Health sends one health check, and returns nil if the engine reports that it can serve:
// 200 and {"status": "ok"} (docs/tutorial-engine.md).
func (p *Prober) Health(ctx context.Context, url string) error {
	_, err := p.ask(ctx, url)
	return err
}

// Busy checks whether an engine is working between requests. It repeats the check until the
// engine reports that it can serve, at most for busyTimeout.
func (p *Prober) Busy(ctx context.Context, url string) (busy bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	for {
		if busy, err = p.ask(ctx, url); err == nil || !pause.For(ctx, busyRetry) {
			return busy, err
		}
	}
}

func (p *Prober) ask(ctx context.Context, url string) (busy bool, err error) {
	resp, err := p.get(ctx, url+"/health", "")
	if err != nil {
		return false, err
	}
	defer done(resp)
	return readHealth(resp.StatusCode, resp.Body)
}

// readHealth interprets a response of /health.
func readHealth(status int, text io.Reader) (busy bool, err error) {
	var body struct {
		Status     string          `json:"status"`
		Busy       json.RawMessage `json:"busy"` // a value other than a boolean does not make the engine unhealthy
		Subsystems json.RawMessage `json:"subsystems"`
	}
	err = json.NewDecoder(io.LimitReader(text, maxHealthBody)).Decode(&body)
	switch {
	case status != http.StatusOK && err != nil:
		return false, fmt.Errorf("health returned %d", status)
	case err != nil:
		return false, fmt.Errorf("health: %w", err)
	case status != http.StatusOK || body.Status != "ok":
		return false, &Unable{status, failingOf(body.Subsystems)}
	}
	return string(body.Busy) == "true", nil
}

// KeepsAnswering reports whether an engine that should be frozen repeatedly responds, with
// anything, if only a certificate that is not its own, each time within a limit.
func (p *Prober) KeepsAnswering(ctx context.Context, url string, within time.Duration) bool {
	if p.maySend(url) != nil {
		return true // nothing shows that it does not
	}
	for i := range answersToo {
		if i > 0 && !pause.For(ctx, answerEvery) {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, within)
		resp, err := p.get(ctx, url+"/health", "")
		cancel()
		var foreign *Breach
		switch {
		case err == nil:
			_ = resp.Body.Close()
		case !errors.As(err, &foreign):
			return false
		}
	}
	return true
}

// Unreached is the error of a request for which the engine's address accepted no connection.
type Unreached struct{ error }

func (u *Unreached) Unwrap() error { return u.error }

// Reaches reports whether an engine's address accepts a connection in time, or whether that
// could not be found out.
func (p *Prober) Reaches(ctx context.Context, url string, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := p.dialer.DialContext(ctx, "tcp", addressOf(url))
	if err == nil {
		_ = conn.Close()
	}
	return err == nil || !noConnection(err)
}

// addressOf returns host and port of an engine's URL.
func addressOf(url string) string {
	_, address, _ := strings.Cut(url, "://")
	return address
}

// get sends a request. *Unreached, *Breach: another process than the engine responds.
func (p *Prober) get(ctx context.Context, url, key string) (*http.Response, error) {
	if err := p.maySend(url); err != nil {
		return nil, err
	}
	var reached atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { reached.Store(true) },
		// There is a connection, whatever becomes of the handshake.
		TLSHandshakeStart: func() { reached.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	resp, err := p.client.Do(traces.Outgoing(req))
	if err == nil {
		p.dialer.note(req.URL.Host, nil) // also on a connection that was open before
	}
	switch {
	case err == nil:
		return resp, nil
	case !reached.Load() && noConnection(err):
		return nil, &Unreached{err}
	}
	if foreign := p.foreign(err); foreign != nil {
		return nil, foreign
	}
	return nil, err
}
