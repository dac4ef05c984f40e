package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/septemberai/orch/scheduler"
)

// status is the one table from error code to HTTP status (docs/openapi.yaml).
var status = map[scheduler.Code]int{
	scheduler.InvalidRequest:      http.StatusBadRequest,
	scheduler.InvalidPlatformKey:  http.StatusUnauthorized,
	scheduler.InvalidAdminKey:     http.StatusUnauthorized,
	scheduler.PolicyDenied:        http.StatusForbidden,
	scheduler.NotFound:            http.StatusNotFound,
	scheduler.EngineNotFound:      http.StatusNotFound,
	scheduler.MethodNotAllowed:    http.StatusMethodNotAllowed,
	scheduler.EngineAlreadyExists: http.StatusConflict,
	scheduler.EngineRunning:       http.StatusConflict,
	scheduler.EngineNotRunning:    http.StatusConflict,
	scheduler.EngineBusy:          http.StatusConflict,
	scheduler.EngineDestroyed:     http.StatusConflict,
	scheduler.EngineQuarantined:   http.StatusConflict,
	scheduler.ProductSlugExists:   http.StatusConflict,
	scheduler.ProductHasEngines:   http.StatusConflict,
	scheduler.ProductNotFound:     http.StatusNotFound,
	scheduler.VolumeNotFound:      http.StatusNotFound,
	scheduler.QuarantineNotFound:  http.StatusNotFound,
	scheduler.PolicyChanged:       http.StatusPreconditionFailed,
	scheduler.IdempotencyReused:   http.StatusUnprocessableEntity,
	scheduler.RateLimited:         http.StatusTooManyRequests,
	scheduler.RequestTooLarge:     http.StatusRequestEntityTooLarge,
	scheduler.UnsupportedMedia:    http.StatusUnsupportedMediaType,
	scheduler.QuotaExceeded:       http.StatusTooManyRequests,
	scheduler.Internal:            http.StatusInternalServerError,
	scheduler.EngineBootFailed:    http.StatusBadGateway,
	scheduler.BackendError:        http.StatusBadGateway,
	scheduler.PortExhaustion:      http.StatusServiceUnavailable,
	scheduler.CapacityExhausted:   http.StatusServiceUnavailable,
	scheduler.BackendUnavailable:  http.StatusServiceUnavailable,
	scheduler.RegistryRecovering:  http.StatusServiceUnavailable,
	scheduler.RecordUnreadable:    http.StatusServiceUnavailable,
	scheduler.BootTimeout:         http.StatusGatewayTimeout,
	scheduler.StopUnconfirmed:     http.StatusGatewayTimeout,
	scheduler.RotationUnconfirmed: http.StatusGatewayTimeout,
}

// statusHungUp is what the log says of a request whose caller did not wait for the
// answer, as nginx does: nobody gets it.
const statusHungUp = 499

// errorBody is every answer that is not 2xx.
type errorBody struct {
	Error struct {
		Code      scheduler.Code `json:"code"`
		Message   string         `json:"message"`
		RequestID string         `json:"request_id"`
	} `json:"error"`
}

// writeError answers with an error; its cause goes to the log alone.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := scheduler.AsError(err)
	code, known := status[e.Code]
	if !known {
		code = http.StatusInternalServerError
	}
	id := scheduler.RequestID(r.Context())
	args := []any{"status", code, "request_id", id, "code", string(e.Code), "method", r.Method}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	switch {
	case code < http.StatusInternalServerError, r.URL.Path == readyPath: // its answer is the alarm
		s.log.Debug("request refused", args...)
	case errors.Is(r.Context().Err(), context.Canceled) && code == http.StatusServiceUnavailable:
		// Whatever was asked meanwhile was given up with the caller.
		args[1] = statusHungUp
		s.log.Debug("the caller hung up", args...)
	case code == http.StatusServiceUnavailable:
		s.outages.failed(cmp.Or(scheduler.Away(err), string(e.Code)), id, err)
		s.log.Debug("request failed", args...)
	default:
		s.log.Error("request failed", args...)
	}
	if res, ok := w.(*response); ok && res.begun {
		// The caller has a part of another answer: a broken one is better than a wrong one.
		panic(http.ErrAbortHandler)
	}
	wait := e.RetryAfter
	if wait < time.Second && (code == http.StatusServiceUnavailable || code == http.StatusTooManyRequests) {
		wait = time.Second
	}
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	var body errorBody
	body.Error.Code, body.Error.Message, body.Error.RequestID = e.Code, e.Message, id
	writeJSON(w, code, body)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("server: answers always marshal: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}
