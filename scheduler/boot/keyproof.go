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

// Proof is how an engine is asked for its key (SPEC section 7).
type Proof struct {
	Path string // one that needs a key
	Key  string // "": it is not known, and not asked for
	// Runs says whether Nomad has started the engine's process. Until it has, whatever
	// answers at the engine's address is a stranger, and is not sent the key.
	Runs func(context.Context) bool
}

// Breach is an answer that an engine which keeps the contract does not give.
type Breach struct{ Said string }

func (b *Breach) Error() string { return b.Said }

var errNotStarted = errors.New("something answers there, but Nomad has not started the engine's process yet")

// Refuses says whether a status code refuses a key.
func Refuses(code int) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden
}

// Status asks for a path with a key, or with none, and returns the status code.
func (p *Prober) Status(ctx context.Context, url, path, key string) (int, error) {
	resp, err := p.get(ctx, url+path, key)
	if err != nil {
		return 0, err
	}
	done(resp)
	return resp.StatusCode, nil
}

// Locked asks without a key and with one that nobody has, and returns nil when both
// are refused; side by side where p may have more than one connection. *breach.
func (p *Prober) Locked(ctx context.Context, url, path string) error {
	ask := func(key, with string) error {
		code, err := p.Status(ctx, url, path, key)
		if err == nil && !Refuses(code) {
			err = &Breach{fmt.Sprintf("GET %s answers %d %s, and must answer 401 or 403", path, code, with)}
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

// usable asks once and returns nil when the engine says that it can serve, locks out
// who has not its key, and lets in who has. /health is open: by that alone any process
// that holds the port could pass for the engine; and one that lets everybody in is
// never sent the key. *breach, errNotStarted.
func (p *Prober) usable(ctx context.Context, url string, by Proof) error {
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
		err = &Breach{fmt.Sprintf("GET %s answers %d with the engine's own key, and must answer anything but 401 or 403", by.Path, code)}
	}
	return err
}

// servesLocked asks over one connection whether an engine can serve and locks out who has
// not its key. One that is far is asked both at a time: each question takes a round trip.
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
