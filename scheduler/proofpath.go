package scheduler

import (
	"context"
	"errors"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// keyProof is how a row's engine is asked for a key while its process is that of an
// allocation.
func (o *operation) keyProof(path, key, allocID string) boot.Proof {
	jobID := o.row.JobID()
	return boot.Proof{Path: path, Key: key, Runs: func(ctx context.Context) bool { return o.s.taskRuns(ctx, jobID, allocID) }}
}

// brokenContract is what the caller of a boot hears of an engine that answers against
// the contract.
func brokenContract(b *boot.Breach) *engine.Error {
	return engine.Errorf(engine.EngineBootFailed, "the engine serves, but does not keep the engine contract: %s. Have its image check X-Engine-Key there, "+
		"or name a path of it that needs a key (ORCH_ENGINE_KEY_PROOF_PATH, or key_proof_path in the product's policy)", b.Said)
}

// proofPath is the path on which a row's engine proves its key.
func (s *Scheduler) proofPath(ctx context.Context, row *engine.Row) (string, error) {
	path := row.KeyProofPath
	if row.ProductID != engine.WarmProduct {
		p, err := s.store.Product(ctx, row.ProductID)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return "", err
		}
		if err == nil {
			path = p.Policy.KeyProofPath
		}
	}
	if path == "" {
		path = s.opts.KeyProofPath
	}
	return path, nil
}

// taskRuns says whether the process of an allocation was started. Nomad's own word of
// that is batched for up to a second; but its client registers the service of a task
// with Consul as soon as it runs.
func (s *Scheduler) taskRuns(ctx context.Context, jobID, allocID string) bool {
	alloc, known := s.cluster.Newest(jobID)
	switch {
	case !known || alloc.ID != allocID || alloc.Terminal():
		return false
	case alloc.Client == api.AllocClientStatusRunning:
		return true
	}
	registered, err := s.store.ServiceOf(ctx, jobID, allocID)
	return err == nil && registered
}
