package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/septemberai/orch/engine"
)

// register calls an endpoint that decodes before it calls anything. called reports whether
// the body was accepted.
func (s *cutOff) register(body string, headers ...string) (w *httptest.ResponseRecorder, called bool) {
	before := s.calls.Load()
	w = s.send(http.MethodPost, "/products/register", body, append([]string{"X-Admin-Key", adminKey}, headers...)...)
	return w, s.calls.Load() != before
}

const goodProduct = `{"slug": "p", "display_name": "P", "policy": {"max_engines": 3}}`

func TestBodyIsRefused(t *testing.T) {
	s := newCutOff(t)
	for name, c := range map[string]struct{ body, names string }{
		"unknown field":         {`{"slug": "p", "display_name": "P", "slugg": 1}`, `"slugg"`},
		"unknown nested field":  {`{"slug": "p", "display_name": "P", "policy": {"max_engine": 1}}`, `"policy.max_engine"`},
		"field in other case":   {`{"Slug": "p", "display_name": "P"}`, `"Slug"`},
		"duplicate field":       {`{"slug": "p", "display_name": "P", "slug": "q"}`, `"slug"`},
		"duplicate by escape":   {`{"slug": "p", "display_name": "P", "\u0073lug": "q"}`, `"slug"`},
		"duplicate nested":      {`{"slug": "p", "display_name": "P", "policy": {"warm_pool": 1, "warm_pool": 2}}`, `"policy.warm_pool"`},
		"wrong type":            {`{"slug": 5, "display_name": "P"}`, `"slug"`},
		"number as string":      {`{"slug": "p", "display_name": "P", "policy": {"max_engines": "3"}}`, `"policy.max_engines"`},
		"fraction":              {`{"slug": "p", "display_name": "P", "policy": {"max_engines": 1.5}}`, `"policy.max_engines"`},
		"number out of range":   {`{"slug": "p", "display_name": "P", "policy": {"max_engines": 1e30}}`, `"policy.max_engines"`},
		"object wanted":         {`{"slug": "p", "display_name": "P", "policy": []}`, `"policy"`},
		"wrong type in list":    {`{"slug": "p", "display_name": "P", "policy": {"allowed_images": ["a", 5]}}`, `"policy.allowed_images.1"`},
		"null":                  {`{"slug": null, "display_name": "P"}`, `"slug"`},
		"nested null":           {`{"slug": "p", "display_name": "P", "policy": {"max_engines": null}}`, `"policy.max_engines"`},
		"null in a list":        {`{"slug": "p", "display_name": "P", "policy": {"allowed_images": ["a", null]}}`, `"policy.allowed_images.1"`},
		"control character":     {`{"slug": "p", "display_name": "P\u0007"}`, "display_name"},
		"trailing object":       {goodProduct + `{}`, "JSON"},
		"trailing letter":       {goodProduct + `x`, "JSON"},
		"trailing zero byte":    {goodProduct + "\x00", "JSON"},
		"invalid UTF-8 value":   {"{\"slug\": \"p\", \"display_name\": \"\xff\"}", "JSON"},
		"invalid UTF-8 name":    {"{\"slug\": \"p\", \"display_name\": \"P\", \"\xff\": 1}", "JSON"},
		"half a surrogate pair": {`{"slug": "p", "display_name": "\ud800"}`, "JSON"},
		"truncated":             {goodProduct[:20], "JSON"},
		"comment":               {`{"slug": "p", "display_name": "P" /* x */}`, "JSON"},
		"blank but not JSON's":  {"\u00a0\v", "JSON"},
		"byte order mark":       {"\uFEFF" + goodProduct, "JSON"},
		"array":                 {`[` + goodProduct + `]`, "object"},
		"string":                {`"p"`, "object"},
		"null alone":            {`null`, "object"},
		"empty":                 {"", "display_name"},
		"blank":                 {" \r\n\t", "display_name"},
		"empty object":          {"{}", "display_name"},
		"long unknown field":    {`{"` + strings.Repeat("é", 5000) + `": 1}`, strings.Repeat("é", 80) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			w, called := s.register(c.body)
			if message := want(t, w, 400, engine.InvalidRequest); !strings.Contains(message, c.names) {
				t.Errorf("message %q does not name %q", message, c.names)
			}
			if called {
				t.Error("the refused body reached the scheduler")
			}
		})
	}
}

// pad returns a valid body of exactly n bytes.
func pad(n int) string { return goodProduct + strings.Repeat(" ", n-len(goodProduct)) }

func TestBodySize(t *testing.T) {
	s := newCutOff(t)
	t.Run("OK 64 KiB", func(t *testing.T) {
		w, called := s.register(pad(64 << 10))
		want(t, w, 503, engine.BackendUnavailable)
		if !called {
			t.Error("the body did not reach the scheduler")
		}
	})
	t.Run("ErrTooLarge", func(t *testing.T) {
		w, called := s.register(pad(64<<10 + 1))
		if message := want(t, w, 413, engine.RequestTooLarge); !strings.Contains(message, "64 KiB") {
			t.Errorf("message %q does not name the limit", message)
		}
		if called {
			t.Error("the refused body reached the scheduler")
		}
	})
}

func TestContentType(t *testing.T) {
	s := newCutOff(t)
	for _, ct := range []string{"", "application/json", "application/json; charset=utf-8", "Application/JSON", "application/json ;charset=\"utf-8\""} {
		t.Run("OK "+ct, func(t *testing.T) {
			w, _ := s.register(goodProduct, "Content-Type", ct)
			want(t, w, 503, engine.BackendUnavailable)
		})
	}
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "text/json", "application/jsonp", "application/json; charset", "json", ";", "application/json, text/plain"} {
		t.Run("ErrUnsupported "+ct, func(t *testing.T) {
			w, called := s.register(goodProduct, "Content-Type", ct)
			want(t, w, 415, engine.UnsupportedMedia)
			if called {
				t.Error("the refused body reached the scheduler")
			}
		})
	}
}

// TestNoBody: a missing body counts as {}, with any content type, as curl with an empty -d
// sends it.
func TestNoBody(t *testing.T) {
	s := newCutOff(t)
	for _, ct := range []string{"application/x-www-form-urlencoded", "text/plain", ";"} {
		for name, length := range map[string]int64{"empty": 0, "chunked": -1} {
			t.Run(name+" "+ct, func(t *testing.T) {
				r := httptest.NewRequest(http.MethodPost, "/registry/recover", strings.NewReader(""))
				r.ContentLength = length
				r.Header.Set("X-Admin-Key", adminKey)
				r.Header.Set("Content-Type", ct)
				want(t, s.answer(r), 503, engine.BackendUnavailable) // accepted: the registry is unavailable
			})
		}
		w := s.send(http.MethodPost, "/registry/recover", "{}", "X-Admin-Key", adminKey, "Content-Type", ct)
		want(t, w, 415, engine.UnsupportedMedia)
	}
}

// adminBodies are the endpoints that decode before they call anything.
var adminBodies = []struct{ method, path, good string }{
	{"POST", "/products/register", goodProduct},
	{"PUT", "/products/" + someProduct + "/policy", `{"policy": {"allowed_images": ["a*"], "idle_timeout_s": 0}}`},
	{"POST", "/products/" + someProduct + "/rotate-platform-key", `{"overlap_seconds": 60}`},
	{"DELETE", "/products/" + someProduct, "{}"},
	{"POST", "/registry/recover", "{}"},
	{"POST", "/quarantine/e/adopt", `{"product_id": "p", "user_id": "u"}`},
	{"DELETE", "/quarantine/e", "{}"},
}

// someProduct has the form of a product_id.
const someProduct = "abcdefghijklmnopqrstuvwxyz"

// FuzzBody: whatever is sent is either refused with a 4xx and calls nothing, or it is
// strict JSON and reaches the registry, which is unavailable.
func FuzzBody(f *testing.F) {
	s := newCutOff(f)
	for i, endpoint := range adminBodies {
		for _, body := range []string{goodProduct, endpoint.good, "", "{}", "null", `{"slug":"p","slug":"p"}`, endpoint.good + "x", "\xff", "\u00a0", "\v", `{"display_name":"\ud800"}`, `{"policy":{"warm_pool":null}}`, pad(64<<10 + 1)} {
			f.Add(i, body, "application/json")
		}
	}
	f.Add(0, goodProduct, "text/plain")
	f.Add(0, goodProduct, "application/json; charset=\xff")
	f.Fuzz(func(t *testing.T, i int, body, contentType string) {
		endpoint := adminBodies[uint(i)%uint(len(adminBodies))]
		before := s.calls.Load()
		w := s.send(endpoint.method, endpoint.path, body, "X-Admin-Key", adminKey, "Content-Type", contentType)
		called := s.calls.Load() != before
		code, _ := checkForm(t, w)
		switch w.Code {
		case 400, 413, 415:
			if called {
				t.Fatalf("%d %s, but the scheduler was called", w.Code, code)
			}
		case 503:
			if !called {
				t.Fatal("503 without a call")
			}
			if problem := lax(body); strings.Trim(body, blanks) != "" && problem != nil || len(body) > 64<<10 {
				t.Fatalf("accepted: %v (%d bytes)", problem, len(body))
			}
		default:
			t.Fatalf("got %d %s", w.Code, code)
		}
	})
}

// FuzzDecode: the decoder accepts only a strict JSON object or blanks, and what it accepts
// has the same meaning for encoding/json.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{`{"s":"x","n":1,"o":{"s":"y"},"l":["z"]}`, "", " ", "\v", "\u00a0", "\u0085", `{"n":1e0}`, `{"n":-0}`, `{"o":null}`, `{"s":"a","s":"b"}`, `{"o":{"n":1,"n":1}}`, `{"S":"x"}`} {
		f.Add([]byte(body))
	}
	type shape struct {
		S string   `json:"s"`
		N *int     `json:"n"`
		L []string `json:"l"`
		O *struct {
			S string `json:"s"`
			N int    `json:"n"`
		} `json:"o"`
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var got shape
		err := decodeBytes(body, &got)
		if err != nil {
			var e *engine.Error
			if !errors.As(err, &e) || e.Code != engine.InvalidRequest || e.Message == "" || len(e.Message) > 1024 || !utf8.ValidString(e.Message) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if strings.Trim(string(body), blanks) == "" {
			return
		}
		if problem := lax(string(body)); problem != nil {
			t.Fatalf("accepted: %v", problem)
		}
		var other shape
		if err := json.Unmarshal(body, &other); err != nil {
			t.Fatalf("accepted, but encoding/json returns %v", err)
		}
		if a, b := shown(got), shown(other); a != b {
			t.Fatalf("read as %s, encoding/json reads %s", a, b)
		}
	})
}

func shown(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// lax returns how a body is not strict, as far as encoding/json can tell. It is independent
// of the decoder under test.
func lax(body string) error {
	if !utf8.ValidString(body) {
		return errors.New("invalid UTF-8")
	}
	if !json.Valid([]byte(body)) {
		return errors.New("invalid JSON")
	}
	d := json.NewDecoder(strings.NewReader(body))
	first, err := d.Token()
	if err != nil || first != json.Delim('{') {
		return errors.New("not an object")
	}
	return duplicates(d)
}

// duplicates reads the rest of an object and of all nested objects.
func duplicates(d *json.Decoder) error {
	seen := map[string]bool{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		if seen[name.(string)] {
			return fmt.Errorf("%q is given twice", name)
		}
		seen[name.(string)] = true
		if err := value(d); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func value(d *json.Decoder) error {
	token, err := d.Token()
	switch {
	case err != nil:
		return err
	case token == json.Delim('{'):
		return duplicates(d)
	case token == json.Delim('['):
		for d.More() {
			if err := value(d); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}
