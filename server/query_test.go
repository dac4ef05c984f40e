package server

import (
	"errors"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
)

// badQueries are query strings that a list refuses, with the word that the message must
// contain.
var badQueries = map[string]string{
	"limit=0": "limit", "limit=1001": "limit", "limit=-1": "limit", "limit=1.5": "limit", "limit=ten": "limit", "limit=": "limit", "limit=99999999999999999999": "limit",
	"limit=1&limit=2": "limit", "lmit=5": "lmit", "cursor=": "cursor", "cursor=%00": "cursor", "cursor=%FF": "cursor", "limit=%zz": "query string", "a=1;b=2": "query string",
}

func TestQueriesAreRefused(t *testing.T) {
	for _, list := range []struct {
		path string
		more map[string]string
	}{
		{"/engines", map[string]string{"status=dead": "status", "status=": "status", "status=RUNNING": "status", "offset=-1": "offset", "offset=1e3": "offset", "cursor=x&offset=0": "cursor"}},
		{"/audit", map[string]string{
			"action=dance": "action", "since=yesterday": "since", "until=2026-01-01": "until", "user_id=": "user_id", "user_id=a%0Ab": "user_id",
			"user_id=" + strings.Repeat("x", 257): "user_id", "cursor=nonsense": "cursor", "product_id=": "product_id",
		}},
		{"/status", map[string]string{"x=1": "x"}}, {"/products", map[string]string{"x=1": "x"}}, {"/products/" + someProduct, map[string]string{"x=1": "x"}},
	} {
		s := newCutOff(t)
		all := map[string]string{}
		for query, names := range list.more {
			all[query] = names
		}
		if list.path == "/engines" || list.path == "/audit" {
			for query, names := range badQueries {
				all[query] = names
			}
		}
		for query, names := range all {
			t.Run(list.path+"?"+query[:min(len(query), 30)], func(t *testing.T) {
				message := ""
				if list.path == "/engines" { // it authenticates the caller in the registry before it reads more
					_, err := pageOf(httptest.NewRequest("GET", list.path+"?"+query, nil))
					var e *engine.Error
					if !errors.As(err, &e) || e.Code != engine.InvalidRequest {
						t.Fatalf("got %v", err)
					}
					message = e.Message
				} else {
					message = want(t, s.send("GET", list.path+"?"+query, "", "X-Admin-Key", adminKey), 400, engine.InvalidRequest)
				}
				if !strings.Contains(message, names) {
					t.Errorf("message %q does not name %q", message, names)
				}
			})
		}
		if n := s.calls.Load(); n != 0 {
			t.Errorf("%d calls to the agents for refused queries of %s", n, list.path)
		}
	}
}

// FuzzPageQuery: a query string of GET /engines is refused, or everything that it requests
// is within the contract.
func FuzzPageQuery(f *testing.F) {
	for query := range badQueries {
		f.Add(query)
	}
	for _, query := range []string{"", "limit=5&offset=10", "status=running&cursor=abc", "limit=%31", "limit=+1", "limit=0x10"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/engines", nil)
		r.URL.RawQuery = query
		ask, err := pageOf(r)
		if err != nil {
			var e *engine.Error
			if !errors.As(err, &e) || e.Code != engine.InvalidRequest || len(e.Message) > 1024 {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if _, err := url.ParseQuery(query); err != nil {
			t.Fatalf("accepted, but %v", err)
		}
		if ask.Limit < 1 || ask.Limit > maxLimit || ask.Offset < 0 || ask.State != "" && !slices.Contains(engine.States, ask.State) {
			t.Fatalf("accepted as %+v", ask)
		}
	})
}

// FuzzAuditQuery calls the audit log as the admin: a query string is refused with a 400, or
// it returns a list.
func FuzzAuditQuery(f *testing.F) {
	s := newCutOff(f)
	for query := range badQueries {
		f.Add(query)
	}
	for _, query := range []string{"", "limit=5", "user_id=a%20b&action=stop", "since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00%2B23:59", "since=0000-01-01T00:00:00Z", "until=9999-12-31T23:59:59.999999999Z", "product_id=%27%3B--"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/audit", nil)
		r.URL.RawQuery = query
		r.Header.Set("X-Admin-Key", adminKey)
		w := s.answer(r)
		if code, message := checkForm(t, w); w.Code != 200 && (w.Code != 400 || code != "INVALID_REQUEST") {
			t.Fatalf("%q: got %d %s (%s)", query, w.Code, code, message)
		}
	})
}
