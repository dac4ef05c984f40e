package scheduler

import (
	"context"
	"fmt"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

// where distinguishes deployments by what an operator configured.
func where(job jobs.Settings) string {
	return fmt.Sprintf("ORCH_CONSUL_PREFIX=%s/ ORCH_NOMAD_NAMESPACE=%s", job.Deployment, job.Namespace)
}

// lost reports whether an engine has a user according to its secret, but is not in the
// registry.
func (s *Scheduler) lost(ctx context.Context, engineID string) (bool, error) {
	return s.reconcile.Lost(ctx, engineID)
}

// away reports whether an error means that a store is unavailable.
func away(err error) bool {
	switch AsError(err).Code {
	case engine.BackendUnavailable, engine.BackendRefused, engine.BackendError:
		return true
	}
	return false
}

var errRecovering = &engine.Error{
	Code: engine.RegistryRecovering, Message: "the registry (Consul) went back in time and is being rebuilt; users of running engines can be admitted meanwhile; retry", RetryAfter: retryRecovering,
}
