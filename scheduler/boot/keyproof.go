package boot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/septemberai/orch/secrets"
)

// Proof is how the key of an engine is proved (docs/tutorial-engine.md).
type Proof struct {
	JobID string // of the engine, whose name its certificate must have (Prober.Of)
	Path  string // a path that requires the key
	Key   string // "": unknown, and not proved
	// Runs reports whether Nomad has started the engine's process. Until then, whatever
	// responds at the engine's address is another process, and must not get the key.
	Runs func(context.Context) bool
	// Reported reports whether Nomad's view says that the process runs, and was started
	// after the last crash. It can be a second late.
	Reported func() bool
}

// Breach is a response that violates the engine contract.
type Breach struct {
	Said string
	// Certificate: there was no response, because the process at the engine's address
	// does not have the engine's certificate.
	Certificate bool
	// Unverified: it has a certificate with the name of the engine, which only cannot be
	// verified.
	Unverified bool
}

func (b *Breach) Error() string { return b.Said }

var errNotStarted = errors.New("a process responds there, but Nomad has not started the engine's process yet")

// Refuses reports whether a status code refuses a key.
func Refuses(code int) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden
}

// Status requests a path with a key, or without one, and returns the status code.
func (p *Prober) Status(ctx context.Context, url, path, key string) (int, error) {
	resp, err := p.get(ctx, url+path, key)
	if err != nil {
		return 0, err
	}
	done(resp)
	return resp.StatusCode, nil
}

// Locked sends one request without a key and one with a random key, concurrently if p may
// have more than one connection. It returns nil if both are refused. *breach.
func (p *Prober) Locked(ctx context.Context, url, path string) error {
	ask := func(key, with string) error {
		code, err := p.Status(ctx, url, path, key)
		if err == nil && !Refuses(code) {
			err = &Breach{Said: fmt.Sprintf("GET %s returned %d %s, but must return 401 or 403", path, code, with)}
		}
		return err
	}
	wrong := func() error { return ask(secrets.NewEngineKey(), "with a wrong key") }
	if p.connections == 1 {
		if err := ask("", "without a key"); err != nil {
			return err
		}
		return wrong()
	}
	var second error
	var asking sync.WaitGroup
	asking.Go(func() { second = wrong() })
	first := ask("", "without a key")
	asking.Wait()
	return cmp.Or(first, second)
}

// usable sends one probe. It returns nil if the engine reports that it can serve, refuses
// requests without its key, and accepts its key. /health proves nothing, because it is
// open, so any process with that port would pass. An engine that accepts everybody never
// gets the key. *breach, errNotStarted.
func (p *Prober) usable(ctx context.Context, url string, by Proof) error {
	p = p.Of(by.JobID)
	one, end := p.Talk()
	defer end()
	if err := p.servesLocked(ctx, one, url, by.Path); err != nil || by.Key == "" {
		return err
	}
	if !by.Runs(ctx) {
		return errNotStarted
	}
	code, err := one.Status(ctx, url, by.Path, by.Key)
	if err == nil && Refuses(code) {
		err = &Breach{Said: fmt.Sprintf("GET %s returned %d with the engine's own key, but must not return 401 or 403", by.Path, code)}
	}
	return err
}

// servesLocked checks over one connection that an engine can serve and refuses requests
// without its key. For a distant engine both checks run concurrently, because each takes a
// round trip.
func (p *Prober) servesLocked(ctx context.Context, one *Prober, url, path string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	locked, near := make(chan error, 1), false
	far := time.AfterFunc(hedgeAfter, func() { locked <- p.Locked(ctx, url, path) })
	err := one.Health(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { near = far.Stop() },
	}), url)
	if near || far.Stop() {
		if err == nil {
			err = one.Locked(ctx, url, path)
		}
		return err
	}
	if err != nil {
		cancel()
	}
	if lerr := <-locked; err == nil {
		err = lerr
	}
	return err
}
