package scheduler

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// connectTimeout: a port that does not take a connection in this time is
	// not up yet (DESIGN section 4).
	connectTimeout = 50 * time.Millisecond
	// maxHealthBody bounds what is read of an engine's answer.
	maxHealthBody = 64 << 10
	// maxProbes in flight for one boot: a probe that hangs is overtaken by the
	// next, but an engine that answers none is not flooded.
	maxProbes = 4
	// overtakeAfter is when a probe that has no answer yet is overtaken.
	overtakeAfter = 100 * time.Millisecond
)

// prober asks engines directly, without keys for their health and with keys for
// the proof of a rotation.
type prober struct {
	client *http.Client
	first  firstProbe
}

func newProber(timeout, firstDelay time.Duration) *prober {
	dialer := &net.Dialer{Timeout: connectTimeout}
	return &prober{first: firstProbe{unknown: firstDelay}, client: &http.Client{
		Timeout: timeout,
		// An engine cannot send the service elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true},
	}}
}

// health asks once and returns nil when the engine says that it can serve: 200
// and {"status": "ok"} (SPEC section 7).
func (p *prober) health(ctx context.Context, url string) error {
	resp, err := p.get(ctx, url+"/health", "")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct {
		Status string `json:"status"`
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health answered %d", resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxHealthBody)).Decode(&body); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	if body.Status != "ok" {
		return errors.New("health says that it is not ok")
	}
	return nil
}

// status asks for a path that no engine has, with a key, and returns the status
// code: 401 says that the key was refused.
func (p *prober) status(ctx context.Context, url, key string) (int, error) {
	resp, err := p.get(ctx, url+"/.orch/key-proof/"+strings.ToLower(rand.Text()), key)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, nil
}

func (p *prober) get(ctx context.Context, url, key string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	return p.client.Do(req)
}

// usable asks once and returns nil when the engine says that it can serve and
// does not refuse its own key. /health is open: without the key, any process
// that holds the port could pass for the engine.
func (p *prober) usable(ctx context.Context, url, key string) error {
	if err := p.health(ctx, url); err != nil {
		return err
	}
	code, err := p.status(ctx, url, key)
	if err == nil && code == http.StatusUnauthorized {
		err = errors.New("what answers there refuses the engine's key")
	}
	return err
}

// awaitUsable asks until the engine is usable (true) or ctx ends (false).
func (p *prober) awaitUsable(ctx context.Context, url, key, image string) bool {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()

	if !pause(ctx, p.first.delay(image)) {
		return false
	}
	began, answers, inFlight := time.Now(), make(chan error, maxProbes), 0
	for n := 1; ; n++ {
		if inFlight < maxProbes {
			inFlight++
			probes.Go(func() { answers <- p.usable(ctx, url, key) })
		}
		overtake := time.NewTimer(overtakeAfter)
		var err error
		select {
		case <-ctx.Done():
			overtake.Stop()
			return false
		case err = <-answers:
			inFlight--
		case <-overtake.C:
			err = errors.New("no answer yet")
		}
		overtake.Stop()
		if err == nil {
			p.first.learn(image, n == 1)
			return true
		}
		if n == 1 {
			p.first.learn(image, false)
		}
		if !pause(ctx, probeInterval(time.Since(began))) {
			return false
		}
	}
}

// probeInterval grows with the time that a boot takes: fine while most engines
// come up, coarse for those that take long.
func probeInterval(elapsed time.Duration) time.Duration {
	switch {
	case elapsed < 300*time.Millisecond:
		return 3 * time.Millisecond
	case elapsed < 2*time.Second:
		return 20 * time.Millisecond
	}
	return 100 * time.Millisecond
}

func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// firstProbe learns per image when the first probe of a boot is worth sending.
// A probe into a container whose interface is not up yet costs a full second
// (ARP and SYN retry; measured), so the delay creeps up to where the first probe
// just succeeds, and down again while it does.
type firstProbe struct {
	// unknown is the delay of an image that was not booted yet; zero: early
	// probes cost nothing, and there is nothing to learn.
	unknown time.Duration

	mu     sync.Mutex
	delays map[string]time.Duration
}

const (
	// containerDelay is about what a container needs from its planning to its
	// first answer (DESIGN section 4: 300 to 410 ms through Nomad).
	containerDelay = 300 * time.Millisecond
	maxFirstDelay  = 600 * time.Millisecond
	firstStepUp    = 15 * time.Millisecond
)

func (f *firstProbe) delay(image string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current(image)
}

// current is the delay of an image. The lock is held.
func (f *firstProbe) current(image string) time.Duration {
	if d, known := f.delays[image]; known {
		return d
	}
	return f.unknown
}

// learn notes whether the first probe found the engine healthy.
func (f *firstProbe) learn(image string, healthy bool) {
	if f.unknown == 0 {
		return // early probes cost nothing here
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.delays == nil {
		f.delays = map[string]time.Duration{}
	}
	d := f.current(image)
	if healthy {
		f.delays[image] = d - d/16
		return
	}
	f.delays[image] = min(d+firstStepUp, maxFirstDelay)
}
