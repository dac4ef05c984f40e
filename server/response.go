package server

import (
	"net/http"
	"sync/atomic"

	"github.com/septemberai/orch/internal/traces"
)

// response is the writer of one response. It records what is known about it afterwards.
type response struct {
	http.ResponseWriter
	// status is the status that was sent; 0: nothing was sent. After that, the response can
	// only be aborted, not replaced.
	status int
	// route is the template of the request's route; "": no route matched. product is the
	// slug of the product that made the request; "": none is known.
	route, product string
	admin          string // the name of the admin key of the request; "": it has none
	hungUp         bool   // the caller disconnected before the response
	span           traces.Span
	// draining: the client must use another connection, and so another replica, for its
	// next request.
	draining *atomic.Bool
	crowded  func() bool // whether the connection should not stay open afterwards
}

// begin is called before the header is sent.
func (w *response) begin(status int) {
	if w.status != 0 {
		return
	}
	if w.draining.Load() || w.crowded() {
		w.Header().Set("Connection", "close") // with HTTP/2, net/http sends GOAWAY
	}
	w.status = status
}

// WriteHeader sends the status.
func (w *response) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body, after the status.
func (w *response) Write(b []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// Unwrap returns the underlying writer, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// begun reports whether a part of the response was sent.
func (w *response) begun() bool { return w.status != 0 }

type responseKey struct{}

// knownAs records the slug of the product that made a request.
func knownAs(r *http.Request, product string) {
	if res, ok := r.Context().Value(responseKey{}).(*response); ok {
		res.product = product
	}
}

// setRoute records the route of a request.
func setRoute(w http.ResponseWriter, template string) {
	if res, ok := w.(*response); ok {
		res.route = template
	}
}
