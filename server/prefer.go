package server

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/operation"
)

// operationAnswer is an operation in progress.
type operationAnswer struct {
	ID      string        `json:"id"`
	Kind    engine.OpKind `json:"kind"`
	Step    string        `json:"step"`
	BeganAt string        `json:"began_at"`
}

// endedAnswer is a finished operation.
type endedAnswer struct {
	ID      string        `json:"id"`
	Kind    engine.OpKind `json:"kind"`
	BeganAt string        `json:"began_at"`
	EndedAt string        `json:"ended_at"`
	Outcome string        `json:"outcome"` // "ok", or an error code
	Message string        `json:"message,omitempty"`
}

// progress is the operation that an engine has now, and its last finished one.
type progress struct {
	Operation *operationAnswer `json:"operation,omitempty"`
	Last      *endedAnswer     `json:"last_operation,omitempty"`
}

func showProgress(e *engine.Row) (p progress) {
	if op := e.Op; op != nil {
		p.Operation = &operationAnswer{op.ID, op.Kind, op.Step, timestamp(op.BeganAt)}
	}
	if last := e.Last; last != nil {
		p.Last = &endedAnswer{last.ID, last.Kind, timestamp(last.BeganAt), timestamp(last.EndedAt), "ok", last.Message}
		if last.Code != "" {
			p.Last.Outcome = last.Code
		}
	}
	return p
}

// mayWait wraps a change whose caller may prefer not to wait for its end (RFC 7240). If the
// wait ends first, the response is 202 with the engine's current state.
func (s *Server) mayWait(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		wait, applied := preference(r.Header)
		if applied == "" {
			return h(w, r, id)
		}
		return s.waits(h, w, r, id, wait, applied)
	}
}

// answerMargin is how long before the time limit of a call a change that takes longer gets
// its response.
const answerMargin = 5 * time.Second

// mayTakeLong is mayWait for a change whose time depends on the size of a brain: also
// without a preference the response is 202 before the call's time limit, because the change
// continues.
func (s *Server) mayTakeLong(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, id string) error {
		wait, applied := preference(r.Header)
		if most := max(0, s.limit(r)-answerMargin); applied == "" || wait > most {
			wait = most
		}
		return s.waits(h, w, r, id, wait, applied)
	}
}

// waits runs a change whose caller waits for some time.
func (s *Server) waits(h handler, w http.ResponseWriter, r *http.Request, id string, wait time.Duration, applied string) error {
	err := h(w, r.WithContext(operation.WithPatience(r.Context(), time.Now().Add(wait))), id)
	var begun *operation.UnderWay
	if !errors.As(err, &begun) {
		return err
	}
	if w.Header().Get("Location") == "" { // the admin has no use for the path of the product
		w.Header().Set("Location", "/engines/"+url.PathEscape(begun.Engine.UserID))
	}
	if applied != "" {
		w.Header().Set("Preference-Applied", applied)
	}
	writeJSON(w, http.StatusAccepted, struct {
		listedEngine
		progress
	}{s.showEngine(begun.Engine), showProgress(begun.Engine)})
	return nil
}

// preference reads how long a caller wants to wait, and returns the value for the header
// Preference-Applied, or "" if the caller has no preference. Unknown and malformed
// preferences are ignored (RFC 7240, section 2), and the first of two counts.
func preference(header http.Header) (wait time.Duration, applied string) {
	var async, bounded bool
	for _, line := range header.Values("Prefer") {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "respond-async":
				async = true
			case "wait":
				n, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
				if err == nil && !bounded {
					wait, bounded = time.Duration(n)*time.Second, true
				}
			}
		}
	}
	var names []string
	if async {
		names = append(names, "respond-async")
	}
	if bounded {
		names = append(names, "wait="+strconv.Itoa(int(wait.Seconds())))
	}
	return wait, strings.Join(names, ", ")
}

// idempotencyKey returns the call's Idempotency-Key, or "" if it has none.
func idempotencyKey(r *http.Request) (string, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) > 1 || len(keys) == 1 && (keys[0] == "" || len(keys[0]) > scheduler.MaxIdempotencyKey) {
		return "", invalid("the Idempotency-Key header must be given once, with 1 to %d characters", scheduler.MaxIdempotencyKey)
	}
	return strings.Join(keys, ""), nil
}
