package scheduler

import (
	"context"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/engine"
)

// Snapshot takes a snapshot of the caller's engine.
func (s *Scheduler) Snapshot(_ context.Context, caller *Caller, _ string) (*brain.Manifest, error) {
	return nil, missing(caller)
}

// Snapshots lists the snapshots of the caller's engine, newest first. cursor "" begins; next
// "" ends.
func (s *Scheduler) Snapshots(_ context.Context, caller *Caller, _ int, _ string) (list []*brain.Manifest, next string, err error) {
	return nil, "", missing(caller)
}

// DeleteSnapshot deletes one. SNAPSHOT_NOT_FOUND.
func (s *Scheduler) DeleteSnapshot(_ context.Context, caller *Caller, _ string) error {
	return missing(caller)
}

// Restore puts the engine onto the brain in a snapshot ("": the newest), and returns row and
// key as Provision does.
func (s *Scheduler) Restore(_ context.Context, caller *Caller, _ string) (*engine.Row, string, error) {
	return nil, "", missing(caller)
}

// Fork provisions an engine for another user of the product with a brain from a snapshot
// ("": one taken now) of the caller's engine.
func (s *Scheduler) Fork(_ context.Context, caller *Caller, _, _ string) (*engine.Row, string, error) {
	return nil, "", missing(caller)
}

// missing returns ENGINE_NOT_FOUND if the caller has no engine.
func missing(caller *Caller) error {
	if _, err := caller.engine(); err != nil {
		return err
	}
	return engine.Errorf(engine.Internal, "not there yet")
}
