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

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
)

// status maps every error code to its HTTP status (docs/openapi.yaml).
var status = map[engine.Code]int{
	engine.InvalidRequest:      http.StatusBadRequest,
	engine.InvalidPlatformKey:  http.StatusUnauthorized,
	engine.InvalidAdminKey:     http.StatusUnauthorized,
	engine.PolicyDenied:        http.StatusForbidden,
	engine.AdminKeyReadOnly:    http.StatusForbidden,
	engine.NotFound:            http.StatusNotFound,
	engine.EngineNotFound:      http.StatusNotFound,
	engine.MethodNotAllowed:    http.StatusMethodNotAllowed,
	engine.EngineAlreadyExists: http.StatusConflict,
	engine.EngineRunning:       http.StatusConflict,
	engine.EngineNotRunning:    http.StatusConflict,
	engine.EngineBusy:          http.StatusConflict,
	engine.EngineDestroyed:     http.StatusConflict,
	engine.EngineQuarantined:   http.StatusConflict,
	engine.ProductSlugExists:   http.StatusConflict,
	engine.ProductHasEngines:   http.StatusConflict,
	engine.ProductNotFound:     http.StatusNotFound,
	engine.VolumeNotFound:      http.StatusNotFound,
	engine.QuarantineNotFound:  http.StatusNotFound,
	engine.PolicyChanged:       http.StatusPreconditionFailed,
	engine.IdempotencyReused:   http.StatusUnprocessableEntity,
	engine.RateLimited:         http.StatusTooManyRequests,
	engine.TooManyWrongKeys:    http.StatusTooManyRequests,
	engine.RequestTooLarge:     http.StatusRequestEntityTooLarge,
	engine.UnsupportedMedia:    http.StatusUnsupportedMediaType,
	engine.QuotaExceeded:       http.StatusTooManyRequests,
	engine.Internal:            http.StatusInternalServerError,
	engine.EngineBootFailed:    http.StatusBadGateway,
	engine.BackendError:        http.StatusBadGateway,
	engine.BackendRefused:      http.StatusBadGateway,
	engine.PortExhaustion:      http.StatusServiceUnavailable,
	engine.CapacityExhausted:   http.StatusServiceUnavailable,
	engine.BackendUnavailable:  http.StatusServiceUnavailable,
	engine.RegistryRecovering:  http.StatusServiceUnavailable,
	engine.RecordUnreadable:    http.StatusServiceUnavailable,
	engine.Overloaded:          http.StatusServiceUnavailable,
	engine.BootTimeout:         http.StatusGatewayTimeout,
	engine.StopUnconfirmed:     http.StatusGatewayTimeout,
	engine.RotationUnconfirmed: http.StatusGatewayTimeout,

	engine.SnapshotNotFound:         http.StatusNotFound,
	engine.SnapshotCorrupt:          http.StatusUnprocessableEntity,
	engine.SnapshotStoreUnavailable: http.StatusServiceUnavailable,
	engine.SnapshotFailed:           http.StatusInsufficientStorage,
}

// statusHungUp is the status in the log, as in nginx, of a request whose caller
// disconnected before the response. It is never sent.
const statusHungUp = 499

// errorBody is the body of every response with a status other than 2xx.
type errorBody struct {
	Error struct {
		Code      engine.Code `json:"code"`
		Message   string      `json:"message"`
		RequestID string      `json:"request_id"`
	} `json:"error"`
}

// writeError sends an error response. The cause of the error goes only to the log.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := s.wrongKeys.note(r, scheduler.AsError(err))
	code, known := status[e.Code]
	if !known {
		code = http.StatusInternalServerError
	}
	id := operation.RequestID(r.Context())
	args := []any{"status", code, "request_id", id, "code", string(e.Code), "method", r.Method}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	switch {
	case code < http.StatusInternalServerError, r.URL.Path == readyPath: // /ready's response is itself the alarm
		s.log.Debug("request refused", args...)
	case errors.Is(r.Context().Err(), context.Canceled) && code == http.StatusServiceUnavailable:
		// The calls that the request was waiting for were cancelled because its caller
		// left.
		args[1] = statusHungUp
		if res, ok := w.(*response); ok {
			res.hungUp = true
		}
		s.log.Debug("the caller disconnected", args...)
	case code == http.StatusServiceUnavailable, e.Code == engine.BackendRefused:
		s.outages.failed(cmp.Or(scheduler.Away(err), string(e.Code)), id, err)
		s.log.Debug("request failed", args...)
	default:
		s.log.Error("request failed", args...)
	}
	hurryBody(w, r)
	if res, ok := w.(*response); ok && res.begun() {
		// A part of another response has been sent already. Breaking the connection is
		// better than appending an error to that response.
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
	if (code == http.StatusUnauthorized || e.Code == engine.TooManyWrongKeys) && r.ContentLength != 0 && r.ProtoMajor == 1 {
		s.refuse(w, r, code, body)
		return
	}
	writeJSON(w, code, body)
}

const (
	// bodyGrace is how long the rest of a body may take that no handler reads.
	bodyGrace = time.Second
	// refusedGrace is the same for a caller without a right key: a distant one needs a few
	// round trips to send its body. While mostRefused such callers are waited for, others
	// get crowdedGrace.
	refusedGrace = 500 * time.Millisecond
	crowdedGrace = 20 * time.Millisecond
	mostRefused  = 200
)

// hurryBody limits how long an error response waits for a body that was not read: before it
// sends the response, net/http reads the rest of a small body, so that the connection can be
// used again. After this time it closes the connection instead.
func hurryBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 && r.ProtoMajor == 1 { // HTTP/2 does not wait
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyGrace)) // a connection without deadlines waits
	}
}

// refuse sends a response to a caller without a right key, at once, and then closes the
// connection if the body is not there: net/http would wait for it with 8 KB of memory, and
// anybody could make it wait thousands of times. What has arrived is read, because a
// connection that is closed before that takes the response with it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, code int, body any) {
	w.Header().Set("Connection", "close")
	writeJSON(w, code, body)
	grace := crowdedGrace
	if s.refused.Add(1) <= mostRefused {
		grace = refusedGrace
	}
	defer s.refused.Add(-1)
	control := http.NewResponseController(w)
	if control.Flush() != nil || control.SetReadDeadline(time.Now().Add(grace)) != nil {
		return
	}
	var little [512]byte
	for left := maxBody; left > 0; {
		n, err := r.Body.Read(little[:])
		if left -= n; err != nil {
			return
		}
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("server: cannot encode a response: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1)) // the client need not wait for the end of the handler
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}
