package scheduler

import (
	"context"
	"fmt"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// where is what an operator chose that tells this deployment from another.
func where(job jobs.Settings) string {
	return fmt.Sprintf("ORCH_CONSUL_PREFIX=%s/ ORCH_NOMAD_NAMESPACE=%s", job.Deployment, job.Namespace)
}

// lost says whether an engine has a user, by its secret, and nothing in the registry.
func (s *Scheduler) lost(ctx context.Context, engineID string) (bool, error) {
	return s.reconcile.Lost(ctx, engineID)
}

// away says whether an error means that a store does not do what it is there for.
func away(err error) bool {
	code := AsError(err).Code
	return code == engine.BackendUnavailable || code == engine.BackendError
}

var errRecovering = &engine.Error{
	Code: engine.RegistryRecovering, Message: "the registry (Consul) went back in time and is being rebuilt; running engines can be admitted meanwhile; try again", RetryAfter: retryRecovering,
}
