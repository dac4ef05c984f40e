package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Code is what clients branch on (SPEC section 2 and 3).
type Code string

// The codes of the contract.
const (
	InvalidRequest      Code = "INVALID_REQUEST"
	InvalidPlatformKey  Code = "INVALID_PLATFORM_KEY"
	InvalidAdminKey     Code = "INVALID_ADMIN_KEY"
	PolicyDenied        Code = "POLICY_DENIED"
	NotFound            Code = "NOT_FOUND"
	MethodNotAllowed    Code = "METHOD_NOT_ALLOWED"
	RequestTooLarge     Code = "REQUEST_TOO_LARGE"
	UnsupportedMedia    Code = "UNSUPPORTED_MEDIA_TYPE"
	EngineNotFound      Code = "ENGINE_NOT_FOUND"
	EngineAlreadyExists Code = "ENGINE_ALREADY_EXISTS"
	EngineRunning       Code = "ENGINE_ALREADY_RUNNING"
	EngineNotRunning    Code = "ENGINE_NOT_RUNNING"
	EngineBusy          Code = "ENGINE_BUSY"
	EngineDestroyed     Code = "ENGINE_DESTROYED"
	IdempotencyReused   Code = "IDEMPOTENCY_KEY_REUSED"
	VolumeNotFound      Code = "VOLUME_NOT_FOUND"
	ProductSlugExists   Code = "PRODUCT_SLUG_EXISTS"
	ProductNotFound     Code = "PRODUCT_NOT_FOUND"
	ProductHasEngines   Code = "PRODUCT_HAS_ENGINES"
	// PolicyChanged: what the caller's If-Match names has changed (RFC 9110,
	// section 13.1.1).
	PolicyChanged       Code = "POLICY_CHANGED"
	RateLimited         Code = "RATE_LIMITED"
	QuotaExceeded       Code = "QUOTA_EXCEEDED"
	PortExhaustion      Code = "PORT_EXHAUSTION"
	CapacityExhausted   Code = "CAPACITY_EXHAUSTED"
	EngineBootFailed    Code = "ENGINE_BOOT_FAILED"
	BootTimeout         Code = "BOOT_TIMEOUT"
	StopUnconfirmed     Code = "STOP_UNCONFIRMED"
	RotationUnconfirmed Code = "ROTATION_UNCONFIRMED"
	Internal            Code = "INTERNAL_ERROR"
	BackendError        Code = "BACKEND_ERROR"
	BackendUnavailable  Code = "BACKEND_UNAVAILABLE"
	// RegistryRecovering: the registry went back in time and is being rebuilt.
	RegistryRecovering Code = "REGISTRY_RECOVERING"
	// EngineQuarantined: what is known of the engine contradicts itself; only an
	// admin can decide whose it is.
	EngineQuarantined  Code = "ENGINE_QUARANTINED"
	QuarantineNotFound Code = "QUARANTINE_NOT_FOUND"
	// RecordUnreadable: the registry's record of the engine or the product is damaged,
	// or a newer version of the service wrote it.
	RecordUnreadable Code = "RECORD_UNREADABLE"
)

// Error is the one error that callers of the service see. Code and Message are
// for them; Err, the cause, is for the log alone.
type Error struct {
	Code    Code
	Message string
	Err     error
	// RetryAfter is when the same call may do better; zero: it says nothing.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.Err }

func fail(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// How long to wait before the same call may do better.
const (
	retryBusy     = time.Second
	retryBackend  = 2 * time.Second
	retryCapacity = 10 * time.Second
	// retryRecovering: a rebuild of 1,000 engines takes a few seconds
	// (docs/guarantees.md).
	retryRecovering = 3 * time.Second
	// retryUnreadable: a damaged record is rebuilt by the pass that the call asked for.
	retryUnreadable = 3 * time.Second
)

func busy(kind registry.OpKind) *Error {
	e := fail(EngineBusy, "another operation (%s) of this engine is under way; try again in a moment", kind)
	e.RetryAfter = retryBusy
	return e
}

// unreadable is what a caller hears of a record that cannot be read.
func unreadable(u *registry.Unreadable) *Error {
	what, message := "product", "the registry's record of this %s is damaged; it is being rebuilt from what the key store (Vault) and the cluster (Nomad) know: try again in a moment"
	if u.UserID != "" {
		what = "engine"
	}
	if u.Newer {
		message = "a newer version of the service wrote the registry's record of this %s, and this replica cannot read it; it is left as it is: try again when all replicas are updated"
	}
	return &Error{Code: RecordUnreadable, Message: fmt.Sprintf(message, what), Err: u, RetryAfter: retryUnreadable}
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
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	var record *registry.Unreadable
	if errors.As(err, &record) {
		return unreadable(record)
	}
	var plugin *cluster.PluginError
	unavailable := func(what string) *Error {
		return &Error{Code: BackendUnavailable, Message: what, Err: err, RetryAfter: retryBackend}
	}
	switch {
	case errors.Is(err, registry.ErrWentBack), errors.Is(err, registry.ErrMoved):
		return &Error{Code: RegistryRecovering, Message: errRecovering.Message, Err: err, RetryAfter: retryRecovering}
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
		return &Error{Code: BackendError, Message: "the engine's key is not in the key store (Vault) any more; rotate-key gives a running engine a new one, and the next start a stopped one", Err: err}
	case errors.Is(err, secrets.ErrDenied):
		return &Error{Code: BackendError, Message: "the key store (Vault) refused the service's token", Err: err}
	case errors.As(err, &plugin):
		return &Error{Code: BackendError, Message: "the volume plugin of the engine's node failed: " + plugin.Said, Err: err}
	case errors.Is(err, cluster.ErrRejected), errors.Is(err, cluster.ErrInUse):
		return &Error{Code: BackendError, Message: "the cluster (Nomad) refused the request", Err: err}
	case errors.Is(err, registry.ErrConflict), errors.Is(err, cluster.ErrConflict), errors.Is(err, secrets.ErrConflict):
		return &Error{Code: EngineBusy, Message: "another operation of this engine is under way; try again in a moment", Err: err, RetryAfter: retryBusy}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable("the service is stopping or took too long; try again")
	}
	return &Error{Code: Internal, Message: "something went wrong inside the service; its log has the request's id", Err: err}
}
