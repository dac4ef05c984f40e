package engine

import (
	"fmt"
	"time"
)

// Code is the error code that clients distinguish (docs/openapi.yaml).
type Code string

// The codes of the contract.
const (
	InvalidRequest     Code = "INVALID_REQUEST"
	InvalidPlatformKey Code = "INVALID_PLATFORM_KEY"
	InvalidAdminKey    Code = "INVALID_ADMIN_KEY"
	PolicyDenied       Code = "POLICY_DENIED"
	// AdminKeyReadOnly: the role of the call's admin key only allows calls that read.
	AdminKeyReadOnly    Code = "ADMIN_KEY_READ_ONLY"
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
	// PolicyChanged: the policy that the caller's If-Match names has changed (RFC 9110,
	// section 13.1.1).
	PolicyChanged Code = "POLICY_CHANGED"
	RateLimited   Code = "RATE_LIMITED"
	// TooManyWrongKeys: the call's key is wrong, as were too many others from its address.
	TooManyWrongKeys    Code = "TOO_MANY_WRONG_KEYS"
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
	// BackendRefused: a store responds, but refuses the service's token or a right of it.
	BackendRefused Code = "BACKEND_REFUSED"
	// RegistryRecovering: the registry went back in time and is being rebuilt.
	RegistryRecovering Code = "REGISTRY_RECOVERING"
	// EngineQuarantined: the records of the engine contradict each other, and only an admin
	// can decide its owner.
	EngineQuarantined  Code = "ENGINE_QUARANTINED"
	QuarantineNotFound Code = "QUARANTINE_NOT_FOUND"
	// RecordUnreadable: the registry's record of the engine or the product is damaged, or a
	// newer version of the service wrote it.
	RecordUnreadable Code = "RECORD_UNREADABLE"
	SnapshotNotFound Code = "SNAPSHOT_NOT_FOUND"
	// SnapshotCorrupt: a snapshot is not what was stored, so it is not restored.
	SnapshotCorrupt Code = "SNAPSHOT_CORRUPT"
	// SnapshotStoreUnavailable: the snapshot store cannot be reached, or is overloaded.
	SnapshotStoreUnavailable Code = "SNAPSHOT_STORE_UNAVAILABLE"
	// SnapshotFailed: a snapshot could not be taken, for example because its node or the
	// store has no room. The engine goes on.
	SnapshotFailed Code = "SNAPSHOT_FAILED"
	// Overloaded: the replica serves as many concurrent requests as it may.
	Overloaded Code = "OVERLOADED"
)

// Error is the error that callers of the service get. Code and Message are for them; Err,
// the cause, is only for the log.
type Error struct {
	Code    Code
	Message string
	Err     error
	// RetryAfter is when a retry may succeed; zero: unknown.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// How long to wait before the same call may succeed.
const (
	RetryBusy    = time.Second     // the engine was busy
	RetryBackend = 2 * time.Second // a dependency or this replica was not ready
)

// BusyWith returns ENGINE_BUSY for a call that found an operation in progress.
func BusyWith(kind OpKind) *Error {
	e := Errorf(EngineBusy, "another operation (%s) of this engine is in progress; retry in a moment", kind)
	e.RetryAfter = RetryBusy
	return e
}
