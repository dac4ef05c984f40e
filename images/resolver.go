// Package images finds out which digest an image reference means at present, by
// asking the image's registry. It knows nothing of engines.
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
	// limit bounds one question, with its credentials and its token.
	limit = 2 * time.Second
	// grace is how much longer a caller waits for a question to end by its limit.
	grace = limit / 10
	// keep is how long an answer of a registry holds, from when it was asked: a tag
	// that moved is seen by then. A burst of provisions asks once, and ten seconds
	// are less than a person or a pipeline takes from a push to a provision.
	keep = 10 * time.Second
	// renewAfter is the age from which an answer is renewed in the background by
	// whoever gets it, so that an image in use never has its caller wait.
	renewAfter = keep / 2
	// silence is how long a registry that did not answer is not asked again: an
	// outage costs one wait in this time, and engines made in this time after it are
	// not pinned yet.
	silence = 30 * time.Second
	// maxKnown bounds the images that are remembered; products may be allowed to name
	// any.
	maxKnown = 1024
)

// ErrSilent says that the registry did not answer a moment ago, and is left alone for now.
var ErrSilent = errors.New("images: the registry did not answer a moment ago")

var errLate = errors.New("images: the registry, or a credential helper, did not answer in time")

// Resolver asks registries. Its methods may be called from any number of goroutines.
type Resolver struct {
	log  hclog.Logger
	head func(ctx context.Context, ref name.Reference) (digest string, err error)
	idle func() // closes the connections that are kept
	now  func() time.Time

	base  context.Context
	close context.CancelFunc
	work  sync.WaitGroup // one per question

	mu     sync.Mutex
	known  map[string]*entry    // by image
	silent map[string]time.Time // until when a registry is not asked
	warned map[string]bool      // images of which it was said that they cannot be resolved
}

// entry is what is known of an image.
type entry struct {
	digest string
	err    error
	// asked is when the registry was asked that said so; zero: it never was.
	asked    time.Time
	question *question // under way, or nil
}

// question is one request that all who want its answer wait for.
type question struct {
	done  chan struct{} // closed when digest and err are set
	began time.Time

	digest string
	err    error
}

// New returns a resolver, which is to be closed.
func New(log hclog.Logger) *Resolver {
	asker := newAsker()
	r := &Resolver{
		log: log, head: asker.head, idle: asker.transport.CloseIdleConnections, now: time.Now,
		known: map[string]*entry{}, silent: map[string]time.Time{}, warned: map[string]bool{},
	}
	r.base, r.close = context.WithCancel(context.Background())
	return r
}

// Close ends the questions under way and waits for them.
func (r *Resolver) Close() {
	r.close()
	r.work.Wait()
	r.idle()
}

// Digest is the digest ("sha256:...") that an image reference means: as its registry
// said at most 10 s ago, or as the reference says itself. It takes about 2 s at most,
// and asks a registry that did not answer again after 30 s. An error says that it
// cannot be told; that is logged once for each image until it can be told again.
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
	// A question ends by itself, unless a credential helper hangs: who comes later
	// than its limit is told so at once.
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

// ask returns what is known, or the question to wait for.
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

// begin asks the registry. Its caller holds the lock.
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
			return // what it said before holds to its end
		}
		e.digest, e.err, e.asked = digest, err, q.began
	})
}

// prune forgets images that nobody has asked for lately. Its caller holds the lock.
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

// note says once that an image cannot be resolved, and once that it can be again.
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
		r.log.Warn("it cannot be found out which digest an image has: engines that need it now are started with its tag, and are not pinned", "image", image, "why", err)
	case err == nil && before:
		r.log.Info("it can be found out again which digest an image has", "image", image)
	}
}

// answerError is the answer of a registry that names no digest: there is no such
// image, or it is not for this service.
type answerError struct{ Status int }

func (e *answerError) Error() string {
	return fmt.Sprintf("images: the registry answered %d", e.Status)
}
