package server

import "net/http"

// response is the writer of one answer. It knows whether the answer has begun: then it
// can be broken off, and cannot become another one.
type response struct {
	http.ResponseWriter
	begun bool
}

// WriteHeader begins the answer.
func (w *response) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

// Write begins the answer if WriteHeader has not.
func (w *response) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
