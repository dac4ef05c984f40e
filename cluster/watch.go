package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
)

// Watch follows the allocations and evaluations of one job. Open it before changing the
// job, so that no change is missed.
type Watch struct {
	c     *Cluster
	jobID string
	wake  chan struct{} // contains a token if something changed
}

// Watch begins to follow a job. Close ends it.
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

// JobState is what the view knows about a watched job.
type JobState struct {
	Allocs []Alloc
	Evals  []Eval
}

const (
	// firstRecheck and lastRecheck limit how long a waiter trusts the event stream, which
	// is a hint, before it reads from Nomad itself.
	firstRecheck = time.Second
	lastRecheck  = 5 * time.Second
)

// Until calls done with the job's state, now and after every change, until done returns
// true or an error, or ctx ends. It returns the error of done or of ctx.
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

// Refresh reads the job's allocations and evaluations from Nomad itself. The result is from
// after the call began.
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
		// Nobody needs the address of a finished allocation.
		if a.AllocatedResources != nil || w.addressKnown(a.ID) || (&Alloc{Client: a.ClientStatus}).Terminal() {
			continue
		}
		// The list contains no resources, which include the address.
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
		// There is no event when Nomad removes an allocation.
		if !told[a.ID] && a.ModifyIndex <= meta.LastIndex {
			c.view.dropAlloc(a.ID)
		}
	}
	for _, a := range allocs {
		told := allocFrom(a)
		if old := c.view.allocs[a.ID]; told.Addr == "" && old != nil {
			// The planned resources of an allocation never change.
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

// putEval stores an evaluation of a watched job. The caller holds the lock.
func (c *Cluster) putEval(e *api.Evaluation) {
	if c.watches[e.JobID] == nil || e.Status != "complete" {
		return
	}
	if c.view.evals[e.JobID] == nil {
		c.view.evals[e.JobID] = map[string]*Eval{}
	}
	c.view.evals[e.JobID][e.ID] = evalFrom(e)
}

// wake notifies the watches of a job of a change. The caller holds the lock.
func (c *Cluster) wake(jobID string) {
	for w := range c.watches[jobID] {
		select {
		case w.wake <- struct{}{}:
		default: // it has not read the previous change yet
		}
	}
}
