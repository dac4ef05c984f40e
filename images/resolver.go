// Package images resolves an image reference to its current digest, by requests to the
// image's registry. It is independent of engines.
package images

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/hashicorp/go-hclog"
)

const (
	// limit is the time limit of one request, including those for credentials and token.
	limit = 2 * time.Second
	// grace is how much longer a caller waits for a request to end by its limit.
	grace = limit / 10
	// keep is how long a digest is used, from the time of the request: after that, a moved
	// tag is noticed. A burst of provisions causes one request, and nobody gets from a push
	// to a provision in less than ten seconds.
	keep = 10 * time.Second
	// renewAfter is the age from which a digest is renewed in the background when it is
	// used, so that callers never wait for an image in use.
	renewAfter = keep / 2
	// silence is how long a registry that did not respond gets no further request. An
	// outage costs one wait per silence. Engines created within silence after an outage are
	// not pinned yet.
	silence = 30 * time.Second
	// maxKnown limits the number of images in the cache, because products may be allowed to
	// name any image.
	maxKnown = 1024
)

// ErrSilent means that the registry did not respond to a recent request, so no request is sent.
var ErrSilent = errors.New("images: the registry did not respond to a recent request")

var errLate = errors.New("images: the registry, or a credential helper, did not respond in time")

// Resolver sends requests to registries. Its methods are safe for concurrent use.
type Resolver struct {
	log  hclog.Logger
	head func(ctx context.Context, ref name.Reference) (digest string, err error)
	idle func() // closes idle connections
	now  func() time.Time

	base  context.Context
	close context.CancelFunc
	work  sync.WaitGroup // one per request

	mu     sync.Mutex
	known  map[string]*entry    // by image
	silent map[string]time.Time // until when a registry gets no request
	warned map[string]bool      // images that were logged as not resolved
}

// entry is the cached state of an image.
type entry struct {
	digest string
	err    error
	// asked is when the request for the digest was sent; zero: there was none.
	asked    time.Time
	question *question // in progress, or nil
}

// question is one request, for which all callers who need its result wait.
type question struct {
	done  chan struct{} // closed when digest and err are set
	began time.Time

	digest string
	err    error
}

// New returns a Resolver. Call Close when it is no longer needed.
func New(log hclog.Logger) *Resolver {
	asker := newAsker()
	r := &Resolver{
		log: log, head: asker.head, idle: asker.transport.CloseIdleConnections, now: time.Now,
		known: map[string]*entry{}, silent: map[string]time.Time{}, warned: map[string]bool{},
	}
	r.base, r.close = context.WithCancel(context.Background())
	return r
}

// Close cancels the requests in progress and waits for them.
func (r *Resolver) Close() {
	r.close()
	r.work.Wait()
	r.idle()
}

// Digest returns the digest ("sha256:...") of an image reference: the one in the reference
// itself, or the one that its registry returned at most 10 s ago. It takes at most about 2
// s, and sends a registry that did not respond no request for 30 s. An error means that the
// digest is unknown. It is logged once per image until the image is resolved again.
func (r *Resolver) Digest(ctx context.Context, image string) (string, error) {
	ref, err := parse(image)
	if err != nil {
		r.note(image, err)
		return "", err
	}
	if pinned, ok := ref.(name.Digest); ok {
		return pinned.DigestStr(), nil
	}
	e, q := r.ask(image, ref)
	if q == nil {
		if e.err != nil {
			r.note(image, e.err)
		}
		return e.digest, e.err
	}
	// A request ends by itself, unless a credential helper hangs. A caller that comes after
	// the request's time limit gets the error at once.
	late := time.NewTimer(r.until(q))
	defer late.Stop()
	select {
	case <-q.done:
		return q.digest, q.err
	case <-late.C:
		return "", errLate
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (r *Resolver) until(q *question) time.Duration { return q.began.Add(limit + grace).Sub(r.now()) }

// ask returns the cached digest, or the request to wait for.
func (r *Resolver) ask(image string, ref name.Reference) (entry, *question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.known[image]
	if e == nil {
		r.prune()
		e = &entry{}
		r.known[image] = e
	}
	age, registry := r.now().Sub(e.asked), ref.Context().RegistryStr()
	holds := age < keep
	silent := r.now().Before(r.silent[registry])
	switch {
	case holds && (age < renewAfter || e.err != nil || silent):
		return *e, nil
	case silent:
		return entry{err: ErrSilent}, nil
	}
	if e.question == nil {
		r.begin(image, ref, e)
	}
	if holds {
		return *e, nil
	}
	return *e, e.question
}

// begin sends a request to the registry. The caller holds the lock.
func (r *Resolver) begin(image string, ref name.Reference, e *entry) {
	q := &question{done: make(chan struct{}), began: r.now()}
	e.question = q
	r.work.Go(func() {
		defer close(q.done)
		ctx, cancel := context.WithTimeout(r.base, limit)
		defer cancel()
		digest, err := r.head(ctx, ref)
		if r.base.Err() == nil {
			r.note(image, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		q.digest, q.err, e.question = digest, err, nil
		var answer *answerError
		if err != nil && !errors.As(err, &answer) {
			r.silent[ref.Context().RegistryStr()] = r.now().Add(silence)
			return // the previous digest is used until it expires
		}
		e.digest, e.err, e.asked = digest, err, q.began
	})
}

// prune removes images that were not used recently. The caller holds the lock.
func (r *Resolver) prune() {
	if len(r.known) < maxKnown {
		return
	}
	for image, e := range r.known {
		if e.question == nil && r.now().Sub(e.asked) > keep {
			delete(r.known, image)
		}
	}
	for registry, until := range r.silent {
		if r.now().After(until) {
			delete(r.silent, registry)
		}
	}
}

// note logs once that an image cannot be resolved, and once that it can be resolved again.
func (r *Resolver) note(image string, err error) {
	r.mu.Lock()
	before := r.warned[image]
	if err == nil {
		delete(r.warned, image)
	} else if !before {
		if len(r.warned) >= maxKnown {
			clear(r.warned)
		}
		r.warned[image] = true
	}
	r.mu.Unlock()
	switch {
	case err != nil && !before:
		r.log.Warn("cannot resolve an image to its digest: new engines start with its tag and are not pinned", "image", image, "why", err)
	case err == nil && before:
		r.log.Info("an image can be resolved to its digest again", "image", image)
	}
}

// answerError is a registry's response without a digest: the image does not exist, or this
// service may not read it.
type answerError struct{ Status int }

func (e *answerError) Error() string {
	return fmt.Sprintf("images: the registry responded with %d", e.Status)
}
