package server

import "net/http"

// response is the writer of one response. It records whether a part was sent: then the
// response can only be aborted, not replaced.
type response struct {
	http.ResponseWriter
	begun bool
}

// WriteHeader sends the status.
func (w *response) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body, after the status.
func (w *response) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap returns the underlying writer, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
