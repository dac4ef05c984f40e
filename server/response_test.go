package server

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestBegunAnswers: a response that has begun is aborted when its handler fails, and
// nothing is written after it.
func TestBegunAnswers(t *testing.T) {
	s := newCutOff(t)
	ends := map[string]func() error{
		"abort": func() error { panic(http.ErrAbortHandler) },
		"panic": func() error { panic("of the test") },
		"error": func() error { return errors.New("of the test") },
	}
	for name, end := range ends {
		for begun, begin := range map[string]func(http.ResponseWriter){
			"nothing": func(http.ResponseWriter) {},
			"header":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
			"body": func(w http.ResponseWriter) {
				_, _ = io.WriteString(w, `{"half":`)
				_ = http.NewResponseController(w).Flush()
			},
		} {
			t.Run(name+" after "+begun, func(t *testing.T) {
				srv := httptest.NewServer(s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					s.serve(w, r, "", func(w http.ResponseWriter, _ *http.Request, _ string) error {
						begin(w)
						return end()
					})
				})))
				defer srv.Close()
				resp, err := srv.Client().Get(srv.URL)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
				}
				if whole := begun == "nothing" && name != "abort"; whole {
					if err != nil || resp.StatusCode != 500 || !strings.Contains(string(body), "INTERNAL_ERROR") {
						t.Errorf("got %q, %v, want INTERNAL_ERROR", body, err)
					}
				} else if err == nil || strings.Contains(string(body), "error") {
					t.Errorf("got %q, %v, want a broken response", body, err)
				}
			})
		}
	}
}

// TestHead: HEAD is GET without the body.
func TestHead(t *testing.T) {
	s := newCutOff(t)
	srv := httptest.NewServer(s.http.Handler)
	defer srv.Close()
	for _, path := range []string{"/live", "/ready", "/openapi.yaml", "/docs", "/engines/a%2Fb", "/products", "/no-such-endpoint"} {
		t.Run(path, func(t *testing.T) {
			get, err := srv.Client().Get(srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(get.Body)
			_ = get.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			head, err := srv.Client().Head(srv.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			none, err := io.ReadAll(head.Body)
			_ = head.Body.Close()
			if err != nil || len(none) != 0 {
				t.Errorf("HEAD has a body of %d bytes, %v", len(none), err)
			}
			if head.StatusCode != get.StatusCode || head.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
				t.Errorf("HEAD: %d %s, GET: %d %s", head.StatusCode, head.Header.Get("Content-Type"), get.StatusCode, get.Header.Get("Content-Type"))
			}
			if small := len(body) < 2048; small && head.ContentLength != int64(len(body)) { // net/http counts what it can hold
				t.Errorf("HEAD says %d bytes, GET has %d", head.ContentLength, len(body))
			}
		})
	}
}
