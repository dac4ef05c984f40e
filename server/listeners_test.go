package server

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/septemberai/orch/docs"
	"github.com/septemberai/orch/engine"
)

// documented returns the document of the API.
func documented(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(docs.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// operationsOf calls do with the method and the template of every operation.
func operationsOf(t *testing.T, do func(method, template string)) {
	t.Helper()
	for template, item := range documented(t).Paths.Map() {
		for method := range item.Operations() {
			do(method, template)
		}
	}
}

// keysOf returns whether an operation takes the admin's key and whether it takes a platform
// key.
func keysOf(doc *openapi3.T, method, template string) (admin, platform bool) {
	security := doc.Security
	if own := doc.Paths.Value(template).GetOperation(method).Security; own != nil {
		security = *own
	}
	for _, alternative := range security {
		for scheme := range alternative {
			admin = admin || strings.Contains(strings.ToLower(scheme), "admin")
			platform = platform || strings.Contains(strings.ToLower(scheme), "platform")
		}
	}
	return admin, platform
}

// unknown reports whether a response is that of an unknown route.
func unknown(t *testing.T, w *httptest.ResponseRecorder) bool {
	t.Helper()
	return w.Code == 404 && strings.Contains(w.Body.String(), "there is no such endpoint")
}

// TestAdminListener: the operators' listener serves the admin's calls and the probes, and
// nothing else. The public listener serves the admin's calls until the admin is confined.
func TestAdminListener(t *testing.T) {
	s := newCutOff(t)
	cut, cancel := context.WithCancel(t.Context())
	cancel() // no call waits for a store
	send := func(listener string, confined bool, method, path string) *httptest.ResponseRecorder {
		s.ConfineAdmin(confined)
		handler := s.http.Handler
		if listener == "ops" {
			handler = s.AdminHandler()
		}
		r := httptest.NewRequestWithContext(cut, method, path, nil)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	doc, tried := documented(t), 0
	operationsOf(t, func(method, template string) {
		tried++
		admin, platform := keysOf(doc, method, template)
		path := strings.NewReplacer("{", "", "}", "").Replace(template)
		name := method + " " + path
		if got := unknown(t, send("public", false, method, path)); got {
			t.Errorf("%s is an unknown route", name)
		}
		onlyAdmin := admin && !platform
		if got := unknown(t, send("public", true, method, path)); got != onlyAdmin {
			t.Errorf("%s, with the admin confined: unknown route %t, want %t", name, got, onlyAdmin)
		}
		probe := path == "/health" || path == "/live" || path == "/ready"
		if got, want := unknown(t, send("ops", true, method, path)), !onlyAdmin && !probe; got != want {
			t.Errorf("%s on the operators' listener: unknown route %t, want %t", name, got, want)
		}
	})
	if tried < 30 {
		t.Fatalf("the document has only %d operations: the test is blind", tried)
	}
	t.Run("WithAdminKey", func(t *testing.T) {
		s.ConfineAdmin(true)
		for _, path := range []string{"/status", "/audit", "/engines", "/engines/u"} {
			want(t, s.send("GET", path, "", "X-Admin-Key", adminKey), 404, engine.NotFound)
			want(t, s.send("GET", path, "", "X-Admin-Key", ""), 404, engine.NotFound)
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("X-Admin-Key", "a wrong key of the admin")
			w := httptest.NewRecorder()
			s.AdminHandler().ServeHTTP(w, r)
			if unknown(t, w) {
				t.Errorf("%s with an admin key is an unknown route of the operators' listener", path)
			}
		}
		want(t, s.send("GET", "/products/", "", "X-Admin-Key", adminKey), 404, engine.NotFound)
	})
	// An engine by its engine_id is the admin's, and every user_id that resembles it is not.
	t.Run("ByID", func(t *testing.T) {
		for _, c := range []struct {
			method, path string
			admins       bool
		}{
			{"GET", "/engines/by-id/e", true}, {"HEAD", "/engines/by-id/start", true}, {"GET", "/engines/by-id", false}, {"GET", "/engines/by-id%2Fe", false},
			{"DELETE", "/engines/by-id%2Fe", false}, {"DELETE", "/engines/by-id", false}, {"POST", "/engines/by-id/start", false}, {"POST", "/engines/by-id%2Fe/start", false},
		} {
			if got := unknown(t, send("public", true, c.method, c.path)); got != c.admins {
				t.Errorf("%s %s, with the admin confined: unknown route %t, want %t", c.method, c.path, got, c.admins)
			}
			if got := unknown(t, send("ops", true, c.method, c.path)); got == c.admins {
				t.Errorf("%s %s on the operators' listener: unknown route %t, want %t", c.method, c.path, got, !c.admins)
			}
		}
	})
}
