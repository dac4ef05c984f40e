package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// evalPriority puts what somebody waits for before the evaluations of all jobs of
// a node, which Nomad makes whenever the node's host volumes change, at their
// jobs' priority of 50.
const evalPriority = 80

// Register writes a job over the one that had modifyIndex (0: a new one) and
// returns the index after it; only allocations created after that index are
// this registration's. Where the job is already what is to be written, nothing
// changes and the index returned is modifyIndex.
//
// ErrConflict: somebody else changed the job since that index. The error comes
// either from Nomad, which changed nothing, or from confirm: another registration
// at the same index was committed as well, and the job is now the one of either.
// ErrUnavailable: whether the job was written is not known.
func (c *Cluster) Register(ctx context.Context, job *api.Job, modifyIndex uint64) (uint64, error) {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	opts := &api.RegisterOptions{EnforceIndex: true, ModifyIndex: modifyIndex, EvalPriority: evalPriority}
	resp, _, err := c.client.Jobs().RegisterOpts(job, opts, c.write(limited))
	if err != nil {
		return 0, classify(err)
	}
	// Nomad commits a changed job together with its evaluation. For an unchanged
	// job it commits the evaluation alone, and returns an index of the job that is
	// not its JobModifyIndex.
	if changed := resp.EvalCreateIndex == resp.JobModifyIndex; !changed {
		return modifyIndex, nil
	}
	if err := c.confirm(ctx, job, modifyIndex, resp.JobModifyIndex); err != nil {
		return 0, err
	}
	return resp.JobModifyIndex, nil
}

// confirm reads a job back that Nomad says it registered at an index, over the
// one at modifyIndex. Nomad before 2.0.1 compares the index when it receives a
// registration and not when it commits it: of concurrent registrations at one
// index several can succeed, and each replaces the one before. confirm returns
// nil for at most one of them, the first: a later one finds in the job's versions
// that it did not replace the job at modifyIndex. The first finds that it was
// replaced, if that has happened by now.
//
// It can happen later as well: another registration can have been compared with
// the index and wait for its own commit. Where the job is to end a process, that
// would start the process again, so everything that waits for its commit is
// awaited before the job is read. What remains is a registration that a server
// holds up between comparison and commit for longer than all of this takes.
func (c *Cluster) confirm(ctx context.Context, job *api.Job, modifyIndex, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !jobs.Runs(job) {
		if err := c.awaitCommits(ctx, *job.ID); err != nil {
			return err
		}
	}
	opts := c.read(ctx)
	// A server that does not know yet that it lost the lead must not answer from
	// before the registration.
	opts.WaitIndex, opts.WaitTime = index-1, callTimeout
	versions, _, _, err := c.client.Jobs().Versions(*job.ID, false, opts)
	switch err := classify(err); {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: the job that was registered is gone", ErrConflict)
	case err != nil:
		return fmt.Errorf("%w: the job was registered and cannot be read back: %w", ErrUnavailable, err)
	}
	return soleRegistration(versions, jobs.Mark(job), modifyIndex, index)
}

// awaitCommits returns when all that waited for its commit when it was called is
// committed. It makes a write that goes through the same log and that Nomad then
// refuses: the deletion of a variable at an index that no variable has.
func (c *Cluster) awaitCommits(ctx context.Context, jobID string) error {
	_, err := c.client.Variables().CheckedDelete(variablePath(jobID), math.MaxInt64, c.write(ctx))
	if err := classify(err); !errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: the job was registered, and whether it still is cannot be found out: %w", ErrUnavailable, err)
	}
	return nil
}

// soleRegistration judges a registration by the job's versions, the newest first.
// Where the server did not keep the version that was replaced (see
// job_tracked_versions), it counts as the one at modifyIndex.
func soleRegistration(versions []*api.Job, mark string, modifyIndex, index uint64) error {
	now := versions[0]
	switch at := *now.JobModifyIndex; {
	case at < index:
		return fmt.Errorf("%w: a server answers from before the registration", ErrUnavailable)
	case at > index || jobs.Mark(now) != mark:
		return fmt.Errorf("%w: the registration at index %d was replaced by one at %d", ErrConflict, index, at)
	}
	created, replaced := *now.CreateIndex == index, modifyIndex
	switch {
	case created:
		replaced = 0
	case len(versions) > 1 && *versions[1].Version+1 == *now.Version:
		replaced = *versions[1].JobModifyIndex
	}
	if replaced != modifyIndex || created != (modifyIndex == 0) {
		return fmt.Errorf("%w: the registration at index %d replaced another job than the one at %d", ErrConflict, index, modifyIndex)
	}
	return nil
}
