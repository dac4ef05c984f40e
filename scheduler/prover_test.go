package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// node runs batch jobs for a prover. The processes in stays never end.
type node struct {
	mu    sync.Mutex
	stays []string
	jobs  [][]string
	begin chan struct{} // one token for each job that may begin
}

func (n *node) end(ctx context.Context, _ string, names []string) error {
	select {
	case <-n.begin:
	case <-ctx.Done():
		return ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.jobs = append(n.jobs, names)
	for _, name := range names {
		if slices.Contains(n.stays, name) {
			return &engine.Error{Code: engine.StopUnconfirmed, Err: fmt.Errorf("%w: it lives", cluster.ErrBatchFailed)}
		}
	}
	return nil
}

func TestProver(t *testing.T) {
	n := &node{begin: make(chan struct{}, 1000), stays: []string{"stubborn"}}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	t.Cleanup(work.Wait)
	t.Cleanup(cancel)
	p := &prover{end: n.end, spawn: func(do func(context.Context)) { work.Go(func() { do(ctx) }) }, waiting: map[string][]*proof{}}

	// The first begins at once; later ones go into one job after it.
	names := []string{"first", "stubborn"}
	for i := range 50 {
		names = append(names, fmt.Sprint(i))
	}
	errs := make([]error, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		asking.Go(func() { errs[i] = p.prove(ctx, "n", []string{name}) })
	}
	for range 1000 {
		n.begin <- struct{}{}
	}
	asking.Wait()
	for i, name := range names {
		if is := errors.Is(errs[i], errUnproven); is != (name == "stubborn") || !is && errs[i] != nil {
			t.Errorf("%s: %v", name, errs[i])
		}
	}
	if err := p.prove(ctx, "n", []string{"first", "stubborn"}); !errors.Is(err, errUnproven) {
		t.Errorf("one of two lives: %v", err)
	}

	t.Run("Bounded", func(t *testing.T) {
		slow := &node{begin: make(chan struct{})}
		p := &prover{end: slow.end, spawn: p.spawn, waiting: map[string][]*proof{}}
		gone, giveUp := context.WithCancel(ctx)
		giveUp()
		if err := p.prove(gone, "n", []string{"a"}); !errors.Is(err, errUnproven) || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("OneJobForMany", func(t *testing.T) {
		slow := &node{begin: make(chan struct{})}
		p := &prover{end: slow.end, spawn: p.spawn, waiting: map[string][]*proof{}}
		var asked []*proof
		for i := range 10 {
			asked = append(asked, p.join("n", []string{fmt.Sprint(i)}))
		}
		for range 10 {
			select {
			case slow.begin <- struct{}{}:
			case <-asked[9].done:
			}
		}
		for _, a := range asked {
			<-a.done
		}
		if len(slow.jobs) > 2 {
			t.Errorf("%d jobs: %v", len(slow.jobs), slow.jobs)
		}
	})
}
