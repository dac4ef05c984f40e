package boot

import (
	"context"
	"time"

	"github.com/septemberai/orch/internal/pause"
)

// startedWithin limits the wait for news of a started container: a probe that comes too
// early costs about as much.
const startedWithin = time.Second

// maxStarts is the maximum number of concurrent waits: each is a blocking query, and
// together with the permanent ones they must fit into the connections for such queries
// (consulLong in internal/link).
const maxStarts = 24

// Services are the engines' services in Consul's catalog.
type Services interface {
	// ServiceIndex returns the CreateIndex of the newest instance of a service; 0: none.
	ServiceIndex(ctx context.Context, name string) (uint64, error)
	// AwaitService waits for an instance that was registered after an index.
	AwaitService(ctx context.Context, name string, after uint64) error
}

// Starts reports the start of processes for which an early probe is harmful: containers.
type Starts struct {
	of    Services
	told  bool          // whether to wait
	slots chan struct{} // one per boot that waits for Consul
}

// NewStarts returns the starts of engines, each of which is a service; told: they are
// containers.
func NewStarts(of Services, told bool) *Starts {
	return &Starts{of, told, make(chan struct{}, maxStarts)}
}

// Await waits, for containers, until the engine's process was started after index, a
// CreateIndex of its service in Consul.
//
// A probe that reaches a container's published port before its network is up costs a full
// second (ARP and SYN retry; measured). Nomad's own report of a started task can be a
// second late, but Nomad registers the task's service in Consul at once, and the catalog
// shows it within milliseconds. This is only a hint: without it, the engine is probed
// anyway.
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

// Seen returns the index after which a restart of the engine can be noticed.
func (s *Starts) Seen(ctx context.Context, service string) uint64 {
	if !s.told {
		return 0
	}
	index, _ := s.of.ServiceIndex(ctx, service) // only a hint: see Await
	return index
}
