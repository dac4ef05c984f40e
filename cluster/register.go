package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/traces"
	"github.com/septemberai/orch/jobs"
)

// evalPriority lets a job that a caller waits for go before the evaluations that Nomad
// creates for all jobs of a node whenever the node's host volumes change, at their jobs'
// priority of 50.
const evalPriority = 80

// Register writes a job over the version at modifyIndex (0: a new job) and returns the
// index after the write. Only allocations created after that index belong to this
// registration. If the job already has this content, nothing changes, and the returned
// index is modifyIndex.
//
// ErrConflict: another writer changed the job since that index. Either Nomad returns it
// without a change, or confirm returns it: another registration at the same index was
// committed as well, and the job may be either.
//
// ErrUnavailable: it is unknown whether the job was written.
func (c *Cluster) Register(ctx context.Context, job *api.Job, modifyIndex uint64) (uint64, error) {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	opts := &api.RegisterOptions{EnforceIndex: true, ModifyIndex: modifyIndex, EvalPriority: evalPriority}
	resp, _, err := c.client.Jobs().RegisterOpts(job, opts, c.write(limited))
	if err != nil {
		return 0, classify(err)
	}
	traces.Note(ctx, "nomad.evaluation_id", resp.EvalID, "nomad.job_id", *job.ID)
	// Nomad commits a changed job together with its evaluation. For an unchanged job it
	// commits only the evaluation, and returns a job index that is not its JobModifyIndex.
	if changed := resp.EvalCreateIndex == resp.JobModifyIndex; !changed {
		return modifyIndex, nil
	}
	if err := c.confirm(ctx, job, modifyIndex, resp.JobModifyIndex); err != nil {
		return 0, err
	}
	return resp.JobModifyIndex, nil
}

// confirm reads back a job that Nomad reports as registered at index, over the version at
// modifyIndex. Nomad before 2.0.1 compares the index when it receives a registration, but
// not when it commits it. Several concurrent registrations at one index can therefore
// succeed, and each replaces the one before. confirm returns nil for at most one of them,
// the first: a later one finds in the job's versions that it did not replace the job at
// modifyIndex, and the first finds out if it has already been replaced.
//
// The first can also be replaced later, by a registration that has been compared and waits
// for its commit. If the job is meant to end a process, that would start the process again.
// So before the job is read, confirm waits for all registrations that wait for their
// commit. One gap remains: a registration that a server delays between comparison and
// commit for longer than all this takes.
func (c *Cluster) confirm(ctx context.Context, job *api.Job, modifyIndex, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if !jobs.Runs(job) {
		if err := c.awaitCommits(ctx, *job.ID); err != nil {
			return err
		}
	}
	opts := c.read(ctx)
	// WaitIndex prevents a response from before the registration, by a server that does not
	// know yet that it lost the lead.
	opts.WaitIndex, opts.WaitTime = index-1, callTimeout
	versions, _, _, err := c.client.Jobs().Versions(*job.ID, false, opts)
	switch err := classify(err); {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: the registered job no longer exists", ErrConflict)
	case err != nil:
		return fmt.Errorf("%w: the job was registered but cannot be read back: %w", ErrUnavailable, err)
	}
	return soleRegistration(versions, jobs.Mark(job), modifyIndex, index)
}

// awaitCommits returns when all writes that waited for their commit at its start are
// committed. It sends a write through the same log that Nomad then refuses: the deletion of
// a variable at an index that no variable has.
func (c *Cluster) awaitCommits(ctx context.Context, jobID string) error {
	_, err := c.client.Variables().CheckedDelete(variablePath(jobID), math.MaxInt64, c.write(ctx))
	if err := classify(err); !errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: the job was registered, but it cannot be verified that no other registration replaced it: %w", ErrUnavailable, err)
	}
	return nil
}

// soleRegistration judges a registration by the job's versions, newest first. If the server
// no longer has the version that was replaced (see job_tracked_versions), that version
// counts as the one at modifyIndex.
func soleRegistration(versions []*api.Job, mark string, modifyIndex, index uint64) error {
	now := versions[0]
	switch at := *now.JobModifyIndex; {
	case at < index:
		return fmt.Errorf("%w: a server responded with data from before the registration", ErrUnavailable)
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
