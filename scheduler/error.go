package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// How long to wait before the same call may do better.
const (
	retryBackend  = 2 * time.Second
	retryCapacity = 10 * time.Second
	// retryRecovering: a rebuild of 1,000 engines takes a few seconds
	// (docs/guarantees.md).
	retryRecovering = 3 * time.Second
	// retryUnreadable: a damaged record is rebuilt by the pass that the call asked for.
	retryUnreadable = 3 * time.Second
)

// unreadable is what a caller hears of a record that cannot be read.
func unreadable(u *registry.Unreadable) *engine.Error {
	what, message := "product", "the registry's record of this %s is damaged; it is being rebuilt from what the key store (Vault) and the cluster (Nomad) know: try again in a moment"
	if u.UserID != "" {
		what = "engine"
	}
	if u.Newer {
		message = "a newer version of the service wrote the registry's record of this %s, and this replica cannot read it; it is left as it is: try again when all replicas are updated"
	}
	return &engine.Error{Code: engine.RecordUnreadable, Message: fmt.Sprintf(message, what), Err: u, RetryAfter: retryUnreadable}
}

// Away names the store that an error says is out of reach, as Scheduler.Health does;
// "": none.
func Away(err error) string {
	switch {
	case errors.Is(err, registry.ErrUnavailable), errors.Is(err, registry.ErrNoSession):
		return "consul"
	case errors.Is(err, cluster.ErrUnavailable):
		return "nomad"
	case errors.Is(err, secrets.ErrUnavailable):
		return "vault"
	case errors.Is(err, audit.ErrUnavailable):
		return "audit"
	}
	return ""
}

// AsError gives any error its place in the contract. A cause that is not known
// becomes INTERNAL_ERROR, with nothing of it in the message.
func AsError(err error) *engine.Error {
	if err == nil {
		return nil
	}
	var known *engine.Error
	if errors.As(err, &known) {
		return known
	}
	var record *registry.Unreadable
	if errors.As(err, &record) {
		return unreadable(record)
	}
	var plugin *cluster.PluginError
	unavailable := func(what string) *engine.Error {
		return &engine.Error{Code: engine.BackendUnavailable, Message: what, Err: err, RetryAfter: retryBackend}
	}
	switch {
	case errors.Is(err, registry.ErrWentBack), errors.Is(err, registry.ErrMoved):
		return &engine.Error{Code: engine.RegistryRecovering, Message: errRecovering.Message, Err: err, RetryAfter: retryRecovering}
	case errors.Is(err, registry.ErrUnavailable):
		return unavailable("the registry (Consul) cannot be reached; try again")
	case errors.Is(err, registry.ErrNoSession):
		return unavailable("this replica is not connected to the registry (Consul) yet; try again")
	case errors.Is(err, cluster.ErrUnavailable):
		return unavailable("the cluster (Nomad) cannot be reached; try again")
	case errors.Is(err, audit.ErrUnavailable):
		return unavailable("the audit log (its database) cannot be reached, and nothing is changed unaudited; try again")
	case errors.Is(err, secrets.ErrUnavailable):
		return unavailable("the key store (Vault) cannot be reached; try again")
	case errors.Is(err, secrets.ErrNotFound):
		return &engine.Error{Code: engine.BackendError, Message: "the engine's key is not in the key store (Vault) any more; rotate-key gives a running engine a new one, and the next start a stopped one", Err: err}
	case errors.Is(err, secrets.ErrDenied):
		return &engine.Error{Code: engine.BackendError, Message: "the key store (Vault) refused the service's token", Err: err}
	case errors.As(err, &plugin):
		return &engine.Error{Code: engine.BackendError, Message: "the volume plugin of the engine's node failed: " + plugin.Said, Err: err}
	case errors.Is(err, cluster.ErrRejected), errors.Is(err, cluster.ErrInUse):
		return &engine.Error{Code: engine.BackendError, Message: "the cluster (Nomad) refused the request", Err: err}
	case errors.Is(err, registry.ErrConflict), errors.Is(err, cluster.ErrConflict), errors.Is(err, secrets.ErrConflict):
		return &engine.Error{Code: engine.EngineBusy, Message: "another operation of this engine is under way; try again in a moment", Err: err, RetryAfter: engine.RetryBusy}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable("the service is stopping or took too long; try again")
	}
	return &engine.Error{Code: engine.Internal, Message: "something went wrong inside the service; its log has the request's id", Err: err}
}
