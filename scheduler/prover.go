package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
)

const (
	// proofQuiet is how long no process must be seen before the proof counts. A container
	// whose start was in progress when the docker daemon died begins within this time.
	proofQuiet = 3 * time.Second
	// orphanQuiet is the same for raw_exec: without its executor no process can begin, and
	// a second check finds one that was in the middle of an exec during the first.
	orphanQuiet = time.Second
	// proveAtOnce is the maximum number of jobs and allocations in one batch job.
	proveAtOnce = 500
	// proveAlone is how many batch jobs run on a node after one for many jobs failed: one
	// process that cannot be ended must not prevent the proofs of the others.
	proveAlone = 4
)

// prover proves that no process of engines is left on a node, and ends remaining ones.
// Requests that come while a batch job runs on the node go into the next one, so that a
// docker daemon with hundreds of engines needs only two or three.
type prover struct {
	// end ends processes by one batch job (endProcesses); spawn runs a function that the
	// scheduler waits for.
	end   func(ctx context.Context, nodeID string, names []string) error
	spawn func(func(context.Context))

	mu      sync.Mutex
	waiting map[string][]*proof // by node; there is an entry while batch jobs run there
}

// proof is one batch job and the callers that wait for it.
type proof struct {
	names []string
	done  chan struct{}
	errs  map[string]error // by name, after done is closed; nil: proved
}

func newProver(s *Scheduler) *prover {
	quiet := proofQuiet
	if s.opts.Job.Driver == jobs.RawExec {
		quiet = orphanQuiet
	}
	return &prover{
		end: func(ctx context.Context, nodeID string, names []string) error {
			return s.endProcesses(ctx, nodeID, names, quiet)
		},
		spawn: func(do func(context.Context)) { s.ops.Background(do) }, waiting: map[string][]*proof{},
	}
}

// prove ends the processes of jobs and allocations (endScript) on a node, and returns nil
// if none is left. errUnproven: that cannot be proved now. The caller must make sure that
// nothing can start them any more.
func (p *prover) prove(ctx context.Context, nodeID string, names []string) error {
	for len(names) > 0 {
		part := names[:min(len(names), proveAtOnce)]
		names = names[len(part):]
		if err := p.provePart(ctx, nodeID, part); err != nil {
			return err
		}
	}
	return nil
}

func (p *prover) provePart(ctx context.Context, nodeID string, names []string) error {
	joined := p.join(nodeID, names)
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnproven, ctx.Err())
	case <-joined.done:
	}
	for _, name := range names {
		if err := joined.errs[name]; err != nil {
			return fmt.Errorf("%w: %w", errUnproven, err)
		}
	}
	return nil
}

// join adds names to a batch job that has not begun.
func (p *prover) join(nodeID string, names []string) *proof {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting, running := p.waiting[nodeID]
	if len(waiting) == 0 || len(waiting[len(waiting)-1].names)+len(names) > proveAtOnce {
		waiting = append(waiting, &proof{done: make(chan struct{}), errs: map[string]error{}})
	}
	p.waiting[nodeID] = waiting
	last := waiting[len(waiting)-1]
	for _, name := range names {
		if !slices.Contains(last.names, name) {
			last.names = append(last.names, name)
		}
	}
	if !running {
		p.spawn(func(ctx context.Context) { p.run(ctx, nodeID) })
	}
	return last
}

// run runs the batch jobs of a node in succession, until none waits.
func (p *prover) run(ctx context.Context, nodeID string) {
	for {
		p.mu.Lock()
		waiting := p.waiting[nodeID]
		if len(waiting) == 0 {
			delete(p.waiting, nodeID)
			p.mu.Unlock()
			return
		}
		next := waiting[0]
		p.waiting[nodeID] = waiting[1:]
		p.mu.Unlock()
		p.carryOut(ctx, nodeID, next)
		close(next.done)
	}
}

// carryOut runs one batch job, and if that fails, one for each name.
func (p *prover) carryOut(ctx context.Context, nodeID string, proof *proof) {
	err := p.end(ctx, nodeID, proof.names)
	if err == nil {
		return
	}
	for _, name := range proof.names {
		proof.errs[name] = err
	}
	if len(proof.names) == 1 || !errors.Is(err, cluster.ErrBatchFailed) {
		return
	}
	errs := make([]error, len(proof.names))
	var work errgroup.Group
	work.SetLimit(proveAlone)
	for i, name := range proof.names {
		work.Go(func() error {
			errs[i] = p.end(ctx, nodeID, []string{name})
			return nil
		})
	}
	_ = work.Wait() // the errors are recorded
	for i, name := range proof.names {
		proof.errs[name] = errs[i]
	}
}
