package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/septemberai/orch/internal/pause"
)

// maxHealthBody bounds what is read of an engine's answer.
const maxHealthBody = 64 << 10

const (
	// StillAnswers bounds an answer of an engine that answers although it was frozen. One
	// that does so answersToo times, each within three times what an answer took before,
	// too, does not freeze: its first process is not the one that serves. The first answer
	// may have been on its way.
	StillAnswers = 250 * time.Millisecond
	answersToo   = 3
	// SlowAnswer is the slowest answer that is waited for so long.
	SlowAnswer = 500 * time.Millisecond
	// answerEvery is between the questions to one engine.
	answerEvery = 50 * time.Millisecond
	// busyTimeout bounds the question whether an engine is busy, which is asked
	// anew every busyRetry.
	busyTimeout = 3 * time.Second
	busyRetry   = 200 * time.Millisecond
)

// Prober asks engines directly, without keys for their health and with keys for
// the proof of a rotation.
type Prober struct {
	client      *http.Client
	dialer      *hedged
	connections int // to one engine at a time
}

// NewProber returns a prober whose questions are each answered within timeout, or not.
func NewProber(timeout time.Duration) *Prober {
	dialer := &hedged{dial: new(net.Dialer).DialContext, within: timeout}
	return &Prober{dialer: dialer, connections: maxProbes, client: &http.Client{
		Timeout: timeout,
		// An engine cannot send the service elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true},
	}}
}

// Talk is a prober for several questions to one engine, one after the other: they go
// over one connection if the engine keeps it, so that one process answers them all, and
// the way to it is found once. end closes the connection.
func (p *Prober) Talk() (one *Prober, end func()) {
	client, transport := *p.client, &http.Transport{DialContext: p.dialer.DialContext, MaxConnsPerHost: 1}
	client.Transport = transport
	return &Prober{&client, p.dialer, 1}, transport.CloseIdleConnections
}

// done reads what is left of an answer, within bounds: only then can its connection be
// used again.
func done(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxHealthBody))
	_ = resp.Body.Close()
}

// Health asks once and returns nil when the engine says that it can serve: 200
// and {"status": "ok"} (SPEC section 7).
func (p *Prober) Health(ctx context.Context, url string) error {
	_, err := p.ask(ctx, url)
	return err
}

// Busy asks an engine whether it works between requests, until it answers that it
// can serve or busyTimeout is over.
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
	var body struct {
		Status     string          `json:"status"`
		Busy       json.RawMessage `json:"busy"` // what is not a boolean makes nothing unhealthy
		Subsystems json.RawMessage `json:"subsystems"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxHealthBody)).Decode(&body)
	switch {
	case resp.StatusCode != http.StatusOK && err != nil:
		return false, fmt.Errorf("health answered %d", resp.StatusCode)
	case err != nil:
		return false, fmt.Errorf("health: %w", err)
	case resp.StatusCode != http.StatusOK || body.Status != "ok":
		return false, &Unable{resp.StatusCode, failingOf(body.Subsystems)}
	}
	return string(body.Busy) == "true", nil
}

// KeepsAnswering says whether an engine that should be frozen answers again and
// again, whatever it says, each time within a limit.
func (p *Prober) KeepsAnswering(ctx context.Context, url string, within time.Duration) bool {
	for i := range answersToo {
		if i > 0 && !pause.For(ctx, answerEvery) {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, within)
		resp, err := p.get(ctx, url+"/health", "")
		cancel()
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
	}
	return true
}

func (p *Prober) get(ctx context.Context, url, key string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	return p.client.Do(req)
}
