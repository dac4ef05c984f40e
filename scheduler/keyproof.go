package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// keyProof is how an engine is asked for its key (SPEC section 7).
type keyProof struct {
	path string // one that needs a key
	key  string // "": it is not known, and not asked for
	// runs says whether Nomad has started the engine's process. Until it has, whatever
	// answers at the engine's address is a stranger, and is not sent the key.
	runs func(context.Context) bool
}

// breach is an answer that an engine which keeps the contract does not give.
type breach struct{ said string }

func (b *breach) Error() string { return b.said }

var errNotStarted = errors.New("something answers there, but Nomad has not started the engine's process yet")

// refuses says whether a status code refuses a key.
func refuses(code int) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden
}

// status asks for a path with a key, or with none, and returns the status code.
func (p *prober) status(ctx context.Context, url, path, key string) (int, error) {
	resp, err := p.get(ctx, url+path, key)
	if err != nil {
		return 0, err
	}
	done(resp)
	return resp.StatusCode, nil
}

// locked asks without a key and with one that nobody has, and returns nil when both
// are refused; side by side where p may have more than one connection. *breach.
func (p *prober) locked(ctx context.Context, url, path string) error {
	ask := func(key, with string) error {
		code, err := p.status(ctx, url, path, key)
		if err == nil && !refuses(code) {
			err = &breach{fmt.Sprintf("GET %s answers %d %s, and must answer 401 or 403", path, code, with)}
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
func (p *prober) usable(ctx context.Context, url string, by keyProof) error {
	one, end := p.talk()
	defer end()
	if err := p.servesLocked(ctx, one, url, by.path); err != nil || by.key == "" {
		return err
	}
	if !by.runs(ctx) {
		return errNotStarted
	}
	code, err := one.status(ctx, url, by.path, by.key)
	if err == nil && refuses(code) {
		err = &breach{fmt.Sprintf("GET %s answers %d with the engine's own key, and must answer anything but 401 or 403", by.path, code)}
	}
	return err
}

// servesLocked asks over one connection whether an engine can serve and locks out who has
// not its key. One that is far is asked both at a time: each question takes a round trip.
func (p *prober) servesLocked(ctx context.Context, one *prober, url, path string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	locked, near := make(chan error, 1), false
	far := time.AfterFunc(hedgeAfter, func() { locked <- p.locked(ctx, url, path) })
	err := one.health(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { near = far.Stop() },
	}), url)
	if near || far.Stop() {
		if err == nil {
			err = one.locked(ctx, url, path)
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

// keyProof is how a row's engine is asked for a key while its process is that of an
// allocation.
func (o *operation) keyProof(path, key, allocID string) keyProof {
	jobID := o.row.JobID()
	return keyProof{path, key, func(ctx context.Context) bool { return o.s.taskRuns(ctx, jobID, allocID) }}
}

// brokenContract is what the caller of a boot hears of an engine that answers against
// the contract.
func brokenContract(b *breach) *Error {
	return fail(EngineBootFailed, "the engine serves, but does not keep the engine contract: %s. Have its image check X-Engine-Key there, "+
		"or name a path of it that needs a key (ORCH_ENGINE_KEY_PROOF_PATH, or key_proof_path in the product's policy)", b.said)
}

// proofPath is the path on which a row's engine proves its key.
func (s *Scheduler) proofPath(ctx context.Context, row *registry.Engine) (string, error) {
	path := row.KeyProofPath
	if row.ProductID != registry.WarmProduct {
		p, err := s.store.Product(ctx, row.ProductID)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return "", err
		}
		if err == nil {
			path = p.Policy.KeyProofPath
		}
	}
	if path == "" {
		path = s.opts.KeyProofPath
	}
	return path, nil
}

// taskRuns says whether the process of an allocation was started. Nomad's own word of
// that is batched for up to a second; but its client registers the service of a task
// with Consul as soon as it runs.
func (s *Scheduler) taskRuns(ctx context.Context, jobID, allocID string) bool {
	alloc, known := s.cluster.Newest(jobID)
	switch {
	case !known || alloc.ID != allocID || alloc.Terminal():
		return false
	case alloc.Client == api.AllocClientStatusRunning:
		return true
	}
	registered, err := s.store.ServiceOf(ctx, jobID, allocID)
	return err == nil && registered
}
