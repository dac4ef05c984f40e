package scheduler

import (
	"cmp"
	"errors"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
)

// brainError returns the error for a caller about snapshots. Messages of workers name files
// of a user and URLs of the store, so they are only for the log.
func brainError(err error) *engine.Error {
	e := &engine.Error{Code: engine.SnapshotFailed, Err: err}
	switch brain.KindOf(err) {
	case brain.Away:
		e.Code, e.Message, e.RetryAfter = engine.SnapshotStoreUnavailable, "the snapshot store cannot be reached; retry", engine.RetryBackend
	case brain.Refused:
		e.Code, e.Message = engine.BackendRefused, "the snapshot store refuses the service's credentials, or a right of them is missing; an operator must mend that: the service's log names the call"
	case brain.OverQuota:
		e.Message = "the snapshot store is full, or its quota is used up"
	case brain.NotFound:
		e.Code, e.Message = engine.SnapshotNotFound, "there is no such snapshot in the store"
	case brain.Corrupt:
		e.Code, e.Message = engine.SnapshotCorrupt, "the snapshot in the store is not what was stored; nothing was changed: restore another one"
	case brain.Damaged:
		e.Code, e.Message = engine.SnapshotCorrupt, "a database in the snapshot is damaged; the service's log names it"
	case brain.NoRoom:
		e.Message = "the node's disk is full, or the volume's quota is used up"
	case brain.Unreadable:
		e.Message = "a file of the brain cannot be read on its node; the service's log names it"
	case brain.TooLarge:
		e.Message = "the brain is larger than a snapshot can be"
	case brain.Interrupted:
		e.Message = "the snapshot was interrupted on its node; retry"
	case brain.Busy:
		e.Message = "another process uses the brain, or the worker's directory, on its node; the service's log says more; retry"
	default:
		e.Message = "the worker on the node failed; search the service's log for the request's id"
	}
	return e
}

// asBrainError reports whether an error is one about snapshots, and returns it.
func asBrainError(err error) *engine.Error {
	var own *brain.Error
	if errors.As(err, &own) {
		return brainError(err)
	}
	return nil
}

// notStarted returns the error of a worker that gets no process.
func notStarted(state *cluster.WorkerState) error {
	if state.AllocID == "" {
		return engine.Errorf(engine.SnapshotFailed, "the node has no room for the snapshot's worker: %s", cmp.Or(state.Blocked, "Nomad does not place it"))
	}
	return engine.Errorf(engine.SnapshotFailed, "the snapshot's worker does not start on its node (has somebody removed its variable from Nomad?); retry")
}
