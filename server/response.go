package server

import (
	"net/http"
	"sync/atomic"
)

// response is the writer of one response. It records whether a part was sent: then the
// response can only be aborted, not replaced.
type response struct {
	http.ResponseWriter
	begun bool
	// draining: the client must use another connection, and so another replica, for its
	// next request.
	draining *atomic.Bool
}

// begin is called before the header is sent.
func (w *response) begin() {
	if !w.begun && w.draining.Load() {
		w.Header().Set("Connection", "close") // with HTTP/2, net/http sends GOAWAY
	}
	w.begun = true
}

// WriteHeader sends the status.
func (w *response) WriteHeader(status int) {
	w.begin()
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body, after the status.
func (w *response) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

// Unwrap returns the underlying writer, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
