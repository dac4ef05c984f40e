package scheduler

import (
	"context"
	"time"

	"github.com/septemberai/orch/jobs"
)

// startedWithin bounds the wait for word of a started container: a probe that
// comes too early costs about as much.
const startedWithin = time.Second

// maxStarts is how many wait for it concurrently: each is a blocking query, and
// beside those that last they have to fit into the connections for such queries
// (consulLong in internal/link).
const maxStarts = 24

// awaitStarted waits, where a probe that comes too early does harm, until the
// engine's process was started after index, a CreateIndex of its service in
// Consul.
//
// A probe that reaches a container's published port before its network is up
// costs a full second (ARP and SYN retry; measured). Nomad's own word of a
// started task is batched for up to a second; but it registers the task's
// service with Consul at once, and the catalog tells of that within
// milliseconds. It is a hint: without it the engine is probed all the same.
func (o *operation) awaitStarted(ctx context.Context, index uint64) {
	if o.s.opts.Job.Driver != jobs.Docker {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, startedWithin)
	defer cancel()
	select {
	case o.s.starts <- struct{}{}:
		defer func() { <-o.s.starts }()
	case <-ctx.Done():
		return
	}
	for o.s.store.AwaitService(ctx, o.row.JobID(), index) != nil {
		if !pause(ctx, pollEvery) {
			return
		}
	}
}

// startsSeen is the index after which a restart of the engine shows.
func (o *operation) startsSeen(ctx context.Context) uint64 {
	if o.s.opts.Job.Driver != jobs.Docker {
		return 0
	}
	index, _ := o.s.store.ServiceIndex(ctx, o.row.JobID()) // a hint: see awaitStarted
	return index
}
