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

// How long to wait before a retry.
const (
	retryCapacity = 10 * time.Second
	// retryRecovering: a rebuild of 1,000 engines takes a few seconds (docs/guarantees.md).
	retryRecovering = 3 * time.Second
	// retryUnreadable: a damaged record is rebuilt by the pass that the call requested.
	retryUnreadable = 3 * time.Second
)

// unreadable returns the error for a caller about a record that cannot be read.
func unreadable(u *registry.Unreadable) *engine.Error {
	what, message := "product", "the registry's record of this %s is damaged; it is being rebuilt from the data in the key store (Vault) and the cluster (Nomad); retry in a moment"
	if u.UserID != "" {
		what = "engine"
	}
	if u.Newer {
		message = "a newer version of the service wrote the registry's record of this %s, and this replica cannot read it; retry after all replicas are updated"
	}
	return &engine.Error{Code: engine.RecordUnreadable, Message: fmt.Sprintf(message, what), Err: u, RetryAfter: retryUnreadable}
}

// Away returns the name, as in Scheduler.Health, of the store that is unreachable, or refuses
// the service's token, according to an error; "": none.
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

// AsError converts any error into one of the contract. An unknown cause becomes
// INTERNAL_ERROR, with nothing of it in the message.
func AsError(err error) *engine.Error {
	if err == nil {
		return nil
	}
	var known *engine.Error
	if errors.As(err, &known) {
		return known
	}
	if snapshot := asBrainError(err); snapshot != nil {
		return snapshot
	}
	var record *registry.Unreadable
	if errors.As(err, &record) {
		return unreadable(record)
	}
	var plugin *cluster.PluginError
	unavailable := func(what string) *engine.Error {
		return &engine.Error{Code: engine.BackendUnavailable, Message: what, Err: err, RetryAfter: engine.RetryBackend}
	}
	refused := func(store string) *engine.Error {
		return &engine.Error{Code: engine.BackendRefused, Message: store + " refuses the service's login, or a right of it is missing; an operator must mend that: the service's log names the call and the right", Err: err}
	}
	switch {
	case errors.Is(err, registry.ErrDenied):
		return refused("the registry (Consul)")
	case errors.Is(err, cluster.ErrDenied):
		return refused("the cluster (Nomad)")
	case errors.Is(err, secrets.ErrDenied):
		return refused("the key store (Vault)")
	case errors.Is(err, audit.ErrDenied):
		return refused("the audit log (its database)")
	case errors.Is(err, registry.ErrWentBack):
		return unavailable("the registry (Consul) went back in time, and is being compared with its witnesses; try again")
	case errors.Is(err, registry.ErrMoved):
		return &engine.Error{Code: engine.RegistryRecovering, Message: errRecovering.Message, Err: err, RetryAfter: retryRecovering}
	case errors.Is(err, registry.ErrUnavailable):
		return unavailable("the registry (Consul) cannot be reached; retry")
	case errors.Is(err, registry.ErrNoSession):
		return unavailable("this replica is not connected to the registry (Consul) yet; retry")
	case errors.Is(err, cluster.ErrUnavailable):
		return unavailable("the cluster (Nomad) cannot be reached; retry")
	case errors.Is(err, audit.ErrUnavailable):
		return unavailable("the audit log (its database) cannot be reached, and no change is made without it; retry")
	case errors.Is(err, secrets.ErrUnavailable):
		return unavailable("the key store (Vault) cannot be reached; retry")
	case errors.Is(err, secrets.ErrDeleted):
		return &engine.Error{Code: engine.BackendError, Message: "the key of the engine's snapshots was deleted or overwritten in the key store (Vault); an operator must bring it back (vault kv undelete, vault kv rollback)", Err: err}
	case errors.Is(err, secrets.ErrNotFound):
		return &engine.Error{Code: engine.BackendError, Message: "the engine's key is no longer in the key store (Vault); get a new one with rotate-key if the engine runs, or else at its next start", Err: err}
	case errors.As(err, &plugin):
		return &engine.Error{Code: engine.BackendError, Message: "the volume plugin of the engine's node failed: " + plugin.Said, Err: err}
	case errors.Is(err, cluster.ErrRejected), errors.Is(err, cluster.ErrInUse):
		return &engine.Error{Code: engine.BackendError, Message: "the cluster (Nomad) refused the request", Err: err}
	case errors.Is(err, registry.ErrConflict), errors.Is(err, cluster.ErrConflict), errors.Is(err, secrets.ErrConflict):
		return &engine.Error{Code: engine.EngineBusy, Message: "another operation of this engine is in progress; retry in a moment", Err: err, RetryAfter: engine.RetryBusy}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable("the service is stopping or took too long; retry")
	}
	return &engine.Error{Code: engine.Internal, Message: "the service failed; search its log for the request's id", Err: err}
}

// bootFailure is an ENGINE_BOOT_FAILED with its reason for the row.
type bootFailure struct {
	err    *engine.Error
	reason string
}

func (e *bootFailure) Error() string { return e.err.Error() }
func (e *bootFailure) Unwrap() error { return e.err }
