package scheduler

import (
	"context"
	"errors"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// keyProof returns how a key of a row's engine is proved while its process is that of an
// allocation.
func (o *work) keyProof(path, key, allocID string) boot.Proof {
	jobID := o.Row.JobID()
	return boot.Proof{
		JobID: jobID, Path: path, Key: key,
		Runs: func(ctx context.Context) bool { return o.s.taskRuns(ctx, jobID, allocID) },
		Reported: func() bool {
			alloc, known := o.s.cluster.Newest(jobID)
			return known && alloc.ID == allocID && alloc.Client == api.AllocClientStatusRunning && (alloc.Crash == 0 || alloc.Started > alloc.Crash)
		},
	}
}

// brokenContract returns the failure of a boot whose engine breaks the contract of the key
// proof, or has no certificate of its own.
func brokenContract(b *boot.Breach) *bootFailure {
	if b.Certificate {
		return &bootFailure{reason: engine.ReasonCertificate, err: engine.Errorf(engine.EngineBootFailed, "a process listens at the engine's address, but does not prove that it is the engine: %s. It got no key. "+
			"The image must serve TLS with the file in ENGINE_TLS_FILE, and ORCH_ENGINE_CA_FILE must contain the authority that Vault issues it from", b.Said)}
	}
	return &bootFailure{reason: engine.ReasonKeyProof, err: engine.Errorf(engine.EngineBootFailed, "the engine serves, but breaks the engine contract: %s. Make the image check X-Engine-Key there, "+
		"or set a path that requires the key (ORCH_ENGINE_KEY_PROOF_PATH, or key_proof_path in the product's policy)", b.Said)}
}

// proofPath returns the path on which a row's engine proves its key.
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

// taskRuns reports whether the process of an allocation was started. Nomad's own report can
// be a second late, but its client registers a task's service in Consul as soon as the task
// runs.
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
