package contract

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// codesOf returns all error codes in the document.
func codesOf(t *testing.T, doc *openapi3.T) map[string]bool {
	codes := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			for status, resp := range op.Responses.Map() {
				list, _ := resp.Value.Extensions["x-codes"].([]any)
				for _, c := range list {
					codes[c.(string)] = true
				}
				if bad := status >= "300" && len(list) == 0 && path != "/health"; bad {
					t.Errorf("%s %s, %s: no codes", method, path, status)
				}
			}
		}
	}
	return codes
}

// The document's codes are those of the service, except for the two that belong to no
// operation.
func TestCodesAreThoseOfTheService(t *testing.T) {
	documented := codesOf(t, load(t))
	documented["NOT_FOUND"], documented["METHOD_NOT_ALLOWED"] = true, true
	file, err := parser.ParseFile(token.NewFileSet(), "../../engine/error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defined := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Code" {
			for _, v := range spec.Values {
				code, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				defined[code] = true
			}
		}
		return true
	})
	if len(defined) == 0 {
		t.Fatal("no codes found in the service's source")
	}
	for code := range defined {
		if !documented[code] {
			t.Errorf("%s is not documented", code)
		}
	}
	for code := range documented {
		if !defined[code] {
			t.Errorf("%s is documented and does not exist", code)
		}
	}
}

func TestDocument(t *testing.T) {
	doc := load(t)
	ids := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s %s: id %q, summary %q, tags %v", method, path, op.OperationID, op.Summary, op.Tags)
			}
			ids[op.OperationID] = true
			want := []string{"400", "401", "500", "502", "503"}
			if op.Tags[0] == "service" {
				want = nil
			}
			for _, status := range want {
				if op.Responses.Value(status) == nil {
					t.Errorf("%s %s: %s is not documented", method, path, status)
				}
			}
		}
	}
	for name, schema := range doc.Components.Schemas {
		if example := schema.Value.Example; example != nil {
			if err := schema.Value.VisitJSON(example); err != nil {
				t.Errorf("the example of %s: %v", name, err)
			}
		} else if schema.Value.Type.Is("object") && name != "Empty" {
			t.Errorf("%s has no example", name)
		}
	}
}

func TestFind(t *testing.T) {
	doc := load(t)
	for call, want := range map[string]string{
		"POST /engines/provision": "provision", "GET /engines/provision": "getEngine", "GET /engines/a%2Fb": "getEngine",
		"POST /engines/provision/start": "startEngine", "POST /products/register": "registerProduct", "PUT /products/p/policy": "setPolicy",
		"POST /engines/u": "405", "GET /engines/": "404", "GET /no": "404", "PATCH /health": "405",
	} {
		method, path, _ := strings.Cut(call, " ")
		u, err := url.Parse("http://host" + path)
		if err != nil {
			t.Fatal(err)
		}
		op, known := Find(doc, method, u)
		got := map[bool]string{true: "405", false: "404"}[known]
		if op != nil {
			got = op.OperationID
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", call, got, want)
		}
	}
}

// Everything undocumented is found.
func TestTransport(t *testing.T) {
	const failure = `{"error":{"code":"ENGINE_BUSY","message":"m","request_id":"r"}}`
	for _, c := range []struct {
		name, call, sent string
		status           int
		body             string
		headers          []string
		finds            string
	}{
		{"OK", "POST /engines/u/stop", "", 200, `{"status":"stopped"}`, nil, ""},
		{"OKError", "POST /engines/u/stop", "", 409, failure, []string{"Retry-After", "1"}, ""},
		{"OKRefusedCall", "POST /engines/u/stop", "[1]", 409, failure, nil, ""},
		{"OKUnknownRoute", "GET /no", "", 404, strings.Replace(failure, "ENGINE_BUSY", "NOT_FOUND", 1), nil, ""},
		{"UnknownField", "POST /engines/u/stop", "", 200, `{"status":"stopped","more":1}`, nil, "more"},
		{"MissingField", "POST /engines/u/stop", "", 200, `{}`, nil, "status"},
		{"WrongValue", "POST /engines/u/stop", "", 200, `{"status":"dead"}`, nil, "status"},
		{"UnknownStatus", "POST /engines/u/stop", "", 418, failure, nil, "undocumented status"},
		{"UnknownCode", "POST /engines/u/stop", "", 409, strings.Replace(failure, "BUSY", "NEW", 1), nil, "ENGINE_NEW"},
		{"UnknownHeader", "POST /engines/u/stop", "", 200, `{"status":"stopped"}`, []string{"RateLimit-Limit", "1"}, "RateLimit-Limit"},
		{"MissingHeader", "POST /engines/u/stop", "", 503, strings.Replace(failure, "ENGINE_BUSY", "BACKEND_UNAVAILABLE", 1), nil, "Retry-After"},
		{"UnknownParameter", "GET /status?more=1", "", 200, `{}`, []string{"X-View-Age", "1"}, "more"},
		{"UnknownSentField", "POST /engines/u/admit", `{"more":1}`, 200, `{"admitted":false,"engine":null,"reason":"engine_stopped"}`, nil, "more"},
		{"OKDenial", "POST /engines/u/admit", "", 200, `{"admitted":false,"engine":null,"reason":"engine_stopped"}`, nil, ""},
		{"AdmittedAndDenied", "POST /engines/u/admit", "", 200, `{"admitted":true,"engine":null,"reason":"engine_stopped"}`, nil, "oneOf"},
		{"UnknownType", "POST /engines/u/stop", "", 200, `stopped`, []string{"Content-Type", "text/plain"}, "content type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				w.Header().Set("X-Request-Id", "r")
				for i := 0; i < len(c.headers); i += 2 {
					w.Header().Set(c.headers[i], c.headers[i+1])
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			tr := New(load(t), http.DefaultTransport)
			method, path, _ := strings.Cut(c.call, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(c.sent))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != c.body {
				t.Errorf("the caller gets %q, %v", got, err)
			}
			op, _ := Find(tr.doc, method, req.URL)
			if answer := (Answer{"stopEngine", 409, "ENGINE_BUSY"}); op != nil && op.OperationID == answer.Operation {
				got := !slices.Contains(tr.Unseen(), answer)
				if want := c.status == 409 && c.body == failure; got != want {
					t.Errorf("%s is seen: %v, want %v", answer, got, want)
				}
			}
			found := tr.Take(req.URL.Host)
			if c.finds == "" {
				if len(found) > 0 {
					t.Errorf("found %v", found)
				}
				return
			}
			if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, c.finds) }) {
				t.Errorf("found %v, want %q", found, c.finds)
			}
		})
	}
}
