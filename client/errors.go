package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Code identifies an error of the service. With errors.Is it matches every [*Error] that
// has this code.
type Code string

func (c Code) Error() string { return string(c) }

// The codes of the service.
const (
	ErrInvalidRequest           Code = "INVALID_REQUEST"
	ErrInvalidPlatformKey       Code = "INVALID_PLATFORM_KEY"
	ErrInvalidAdminKey          Code = "INVALID_ADMIN_KEY"
	ErrPolicyDenied             Code = "POLICY_DENIED"
	ErrAdminKeyReadOnly         Code = "ADMIN_KEY_READ_ONLY"
	ErrNotFound                 Code = "NOT_FOUND" // there is no such endpoint
	ErrMethodNotAllowed         Code = "METHOD_NOT_ALLOWED"
	ErrRequestTooLarge          Code = "REQUEST_TOO_LARGE"
	ErrUnsupportedMediaType     Code = "UNSUPPORTED_MEDIA_TYPE"
	ErrEngineNotFound           Code = "ENGINE_NOT_FOUND"
	ErrEngineAlreadyExists      Code = "ENGINE_ALREADY_EXISTS"
	ErrEngineAlreadyRunning     Code = "ENGINE_ALREADY_RUNNING"
	ErrEngineNotRunning         Code = "ENGINE_NOT_RUNNING"
	ErrEngineBusy               Code = "ENGINE_BUSY"
	ErrEngineDestroyed          Code = "ENGINE_DESTROYED"
	ErrEngineQuarantined        Code = "ENGINE_QUARANTINED"
	ErrIdempotencyKeyReused     Code = "IDEMPOTENCY_KEY_REUSED"
	ErrProductSlugExists        Code = "PRODUCT_SLUG_EXISTS"
	ErrProductNotFound          Code = "PRODUCT_NOT_FOUND"
	ErrProductHasEngines        Code = "PRODUCT_HAS_ENGINES"
	ErrVolumeNotFound           Code = "VOLUME_NOT_FOUND"
	ErrQuarantineNotFound       Code = "QUARANTINE_NOT_FOUND"
	ErrPolicyChanged            Code = "POLICY_CHANGED"
	ErrRateLimited              Code = "RATE_LIMITED"
	ErrTooManyWrongKeys         Code = "TOO_MANY_WRONG_KEYS"
	ErrQuotaExceeded            Code = "QUOTA_EXCEEDED"
	ErrPortExhaustion           Code = "PORT_EXHAUSTION"
	ErrCapacityExhausted        Code = "CAPACITY_EXHAUSTED"
	ErrEngineBootFailed         Code = "ENGINE_BOOT_FAILED"
	ErrBootTimeout              Code = "BOOT_TIMEOUT"
	ErrStopUnconfirmed          Code = "STOP_UNCONFIRMED"
	ErrRotationUnconfirmed      Code = "ROTATION_UNCONFIRMED"
	ErrSnapshotNotFound         Code = "SNAPSHOT_NOT_FOUND"
	ErrSnapshotCorrupt          Code = "SNAPSHOT_CORRUPT"
	ErrSnapshotStoreUnavailable Code = "SNAPSHOT_STORE_UNAVAILABLE"
	ErrSnapshotFailed           Code = "SNAPSHOT_FAILED"
	ErrInternal                 Code = "INTERNAL_ERROR"
	ErrBackendError             Code = "BACKEND_ERROR"
	ErrBackendRefused           Code = "BACKEND_REFUSED"
	ErrBackendUnavailable       Code = "BACKEND_UNAVAILABLE"
	ErrRegistryRecovering       Code = "REGISTRY_RECOVERING"
	ErrRecordUnreadable         Code = "RECORD_UNREADABLE"
	ErrOverloaded               Code = "OVERLOADED"
)

// Error is a response with a status other than 2xx.
type Error struct {
	Status     int
	Code       Code // empty: the response is not from the service, but for example from a proxy
	Message    string
	RequestID  string
	RetryAfter time.Duration // zero: the response has none
	Rate       *Rate         // of an admit, if the product has a rate limit
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%d): %s", e.Code, e.Status, e.Message) }

// Is reports whether target is the error's code.
func (e *Error) Is(target error) bool {
	code, ok := target.(Code)
	return ok && code == e.Code && code != ""
}

func errorOf(resp *http.Response, answer []byte) *Error {
	var body struct {
		Error struct {
			Code      Code   `json:"code"`
			Message   string `json:"message"`
			RequestID string `json:"request_id"`
		} `json:"error"`
	}
	_ = json.Unmarshal(answer, &body) // if it is not JSON of the service, only the status is known
	e := &Error{
		Status: resp.StatusCode, Code: body.Error.Code, Message: body.Error.Message,
		RequestID: body.Error.RequestID, Rate: rateOf(resp.Header),
	}
	if e.RequestID == "" {
		e.RequestID = resp.Header.Get("X-Request-Id")
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
