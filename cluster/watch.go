package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
)

// Watch follows the allocations and evaluations of one job. It is opened before
// the job is changed, so that it misses nothing of what follows.
type Watch struct {
	c     *Cluster
	jobID string
	wake  chan struct{} // holds one token when something changed
}

// Watch begins to follow a job; Close ends it.
func (c *Cluster) Watch(jobID string) *Watch {
	w := &Watch{c: c, jobID: jobID, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches[jobID] == nil {
		c.watches[jobID] = map[*Watch]struct{}{}
	}
	c.watches[jobID][w] = struct{}{}
	return w
}

// Close ends the watch.
func (w *Watch) Close() {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watches[w.jobID], w)
	if len(c.watches[w.jobID]) > 0 {
		return
	}
	delete(c.watches, w.jobID)
	delete(c.view.evals, w.jobID)
	for _, a := range slices.Clone(c.view.byJob[w.jobID]) {
		if a.Terminal() {
			c.view.dropAlloc(a.ID)
		}
	}
}

// JobState is what the view knows of a watched job.
type JobState struct {
	Allocs []Alloc
	Evals  []Eval
}

const (
	// firstRecheck and lastRecheck bound how long a waiter trusts the event
	// stream, a hint, before it asks Nomad itself.
	firstRecheck = time.Second
	lastRecheck  = 5 * time.Second
)

// Until calls done with the job's state, now and after every change, until it
// says true, returns an error, or ctx ends (then ctx's error).
func (w *Watch) Until(ctx context.Context, done func(JobState) (bool, error)) error {
	wait := firstRecheck
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		if ok, err := done(w.state()); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		case <-timer.C:
			if err := w.Refresh(ctx); err != nil {
				w.c.log.Debug("cannot read a watched job", "job", w.jobID, "error", err)
			}
			wait = min(2*wait, lastRecheck)
			timer.Reset(wait)
		}
	}
}

func (w *Watch) state() JobState {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	var s JobState
	for _, a := range w.c.view.byJob[w.jobID] {
		s.Allocs = append(s.Allocs, *a)
	}
	for _, e := range w.c.view.evals[w.jobID] {
		s.Evals = append(s.Evals, *e)
	}
	return s
}

// Refresh reads the job's allocations and evaluations from Nomad itself. What
// it tells is true of the moment after it was called.
func (w *Watch) Refresh(ctx context.Context) error {
	c := w.c
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	group, both := errgroup.WithContext(ctx)
	q := c.read(both)
	q.Params = map[string]string{"resources": "true"}
	var (
		allocs []*api.AllocationListStub
		meta   *api.QueryMeta
		evals  []*api.Evaluation
	)
	group.Go(func() (err error) {
		allocs, meta, err = c.client.Jobs().Allocations(w.jobID, true, q)
		return classify(err)
	})
	group.Go(func() (err error) {
		evals, _, err = c.client.Jobs().Evaluations(w.jobID, c.read(both))
		return classify(err)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	for _, a := range allocs {
		// Of one that is over, nobody needs the address.
		if a.AllocatedResources != nil || w.addressKnown(a.ID) || (&Alloc{Client: a.ClientStatus}).Terminal() {
			continue
		}
		// This list leaves out resources; the address is in them.
		full, _, err := c.client.Allocations().Info(a.ID, c.read(ctx))
		if err != nil {
			return fmt.Errorf("allocation of %s: %w", w.jobID, classify(err))
		}
		a.AllocatedResources = full.AllocatedResources
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	told := make(map[string]bool, len(allocs))
	for _, a := range allocs {
		told[a.ID] = true
	}
	for _, a := range slices.Clone(c.view.byJob[w.jobID]) {
		// No event tells that Nomad has forgotten an allocation.
		if !told[a.ID] && a.ModifyIndex <= meta.LastIndex {
			c.view.dropAlloc(a.ID)
		}
	}
	for _, a := range allocs {
		told := allocFrom(a)
		if old := c.view.allocs[a.ID]; told.Addr == "" && old != nil {
			// What was planned for an allocation never changes.
			told.Addr, told.cpuMHz, told.memoryMB, told.diskMB, told.ports = old.Addr, old.cpuMHz, old.memoryMB, old.diskMB, old.ports
		}
		c.view.putAlloc(told, true)
	}
	for _, e := range evals {
		c.putEval(e)
	}
	return nil
}

func (w *Watch) addressKnown(allocID string) bool {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	a := w.c.view.allocs[allocID]
	return a != nil && a.Addr != ""
}

// putEval keeps an evaluation of a watched job. The lock is held.
func (c *Cluster) putEval(e *api.Evaluation) {
	if c.watches[e.JobID] == nil || e.Status != "complete" {
		return
	}
	if c.view.evals[e.JobID] == nil {
		c.view.evals[e.JobID] = map[string]*Eval{}
	}
	c.view.evals[e.JobID][e.ID] = evalFrom(e)
}

// wake tells the watches of a job that something changed. The lock is held.
func (c *Cluster) wake(jobID string) {
	for w := range c.watches[jobID] {
		select {
		case w.wake <- struct{}{}:
		default: // it has not looked since the last change
		}
	}
}
