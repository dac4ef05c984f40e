package boot

import (
	"context"
	"time"

	"github.com/septemberai/orch/internal/pause"
)

// startedWithin bounds the wait for word of a started container: a probe that
// comes too early costs about as much.
const startedWithin = time.Second

// maxStarts is how many wait for it concurrently: each is a blocking query, and
// beside those that last they have to fit into the connections for such queries
// (consulLong in internal/link).
const maxStarts = 24

// Services are the engines' services in Consul's catalog.
type Services interface {
	// ServiceIndex is the CreateIndex of the newest instance of a service; 0: none.
	ServiceIndex(ctx context.Context, name string) (uint64, error)
	// AwaitService waits for an instance that was registered after an index.
	AwaitService(ctx context.Context, name string, after uint64) error
}

// Starts tells of started processes, where a probe that comes too early does harm: of
// containers.
type Starts struct {
	of    Services
	told  bool          // else nothing is waited for
	slots chan struct{} // one per boot that waits for Consul's word of it
}

// NewStarts returns the starts of engines with a service each; told: they are containers.
func NewStarts(of Services, told bool) *Starts {
	return &Starts{of, told, make(chan struct{}, maxStarts)}
}

// Await waits, where a probe that comes too early does harm, until the
// engine's process was started after index, a CreateIndex of its service in
// Consul.
//
// A probe that reaches a container's published port before its network is up
// costs a full second (ARP and SYN retry; measured). Nomad's own word of a
// started task is batched for up to a second; but it registers the task's
// service with Consul at once, and the catalog tells of that within
// milliseconds. It is a hint: without it the engine is probed all the same.
func (s *Starts) Await(ctx context.Context, service string, index uint64) {
	if !s.told {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, startedWithin)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return
	}
	for s.of.AwaitService(ctx, service, index) != nil {
		if !pause.For(ctx, answerEvery) {
			return
		}
	}
}

// Seen is the index after which a restart of the engine shows.
func (s *Starts) Seen(ctx context.Context, service string) uint64 {
	if !s.told {
		return 0
	}
	index, _ := s.of.ServiceIndex(ctx, service) // a hint: see Await
	return index
}
