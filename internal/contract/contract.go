// Package contract checks, in tests, every call to the service and its response against the
// OpenAPI document.
package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/septemberai/orch/docs"
)

// Load reads and validates the document.
func Load() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(docs.OpenAPI)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(loader.Context)
}

// Transport forwards calls, and records what the document does not allow: undocumented
// paths, statuses, codes, headers and fields.
type Transport struct {
	doc  *openapi3.T
	base http.RoundTripper

	mu    sync.Mutex
	found map[string][]string // by host
	seen  map[Answer]bool     // of all hosts
}

// New returns a transport over base.
func New(doc *openapi3.T, base http.RoundTripper) *Transport {
	return &Transport{doc: doc, base: base, found: map[string][]string{}, seen: map[Answer]bool{}}
}

// Take returns the problems that were found at a host, and forgets them.
func (t *Transport) Take(host string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := t.found[host]
	delete(t.found, host)
	return found
}

// Answer is one possible response of an operation, as docs/openapi.yaml lists it.
type Answer struct {
	Operation string // operationId
	Status    int
	Code      string // of an error; empty: no error
}

func (a Answer) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %d %s", a.Operation, a.Status, a.Code))
}

// Unseen returns the responses in the document that were never received by this transport,
// sorted.
func (t *Transport) Unseen() []Answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	var unseen []Answer
	for _, a := range Answers(t.doc) {
		if !t.seen[a] {
			unseen = append(unseen, a)
		}
	}
	return unseen
}

// Answers returns all responses in a document, sorted.
func Answers(doc *openapi3.T) []Answer {
	var all []Answer
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for text, resp := range op.Responses.Map() {
				status, err := strconv.Atoi(text)
				if err != nil {
					continue // the default response
				}
				codes, _ := resp.Value.Extensions["x-codes"].([]any)
				if len(codes) == 0 {
					codes = []any{""}
				}
				for _, code := range codes {
					all = append(all, Answer{op.OperationID, status, fmt.Sprint(code)})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b Answer) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// RoundTrip forwards one call.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		sent = b
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if err != nil {
		return resp, nil // the reader will get the error of a broken response
	}
	problems := t.check(r, sent, resp, body)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range problems {
		t.found[r.URL.Host] = append(t.found[r.URL.Host], fmt.Sprintf("%s %s, %d: %s", r.Method, r.URL.EscapedPath(), resp.StatusCode, p))
	}
	return resp, nil
}

func (t *Transport) check(r *http.Request, sent []byte, resp *http.Response, body []byte) []string {
	op, known := Find(t.doc, r.Method, r.URL)
	if op == nil {
		want := map[bool]string{false: "NOT_FOUND", true: "METHOD_NOT_ALLOWED"}[known]
		if code := codeOf(body); code != want {
			return []string{fmt.Sprintf("no such operation is documented, and the response is %q instead of %s", code, want)}
		}
		return nil
	}
	t.mu.Lock()
	t.seen[Answer{op.OperationID, resp.StatusCode, codeOf(body)}] = true
	t.mu.Unlock()
	documented := op.Responses.Status(resp.StatusCode)
	if documented == nil {
		return []string{"undocumented status: " + string(body)}
	}
	problems := checkAnswer(documented.Value, resp, body)
	if resp.StatusCode < 300 { // refused calls may be wrong on purpose
		problems = append(problems, checkCall(op, r, sent)...)
	}
	return problems
}

// Find returns the operation of a request, or nil. known reports that the path is
// documented for other methods. Literal segments take precedence over parameters.
func Find(doc *openapi3.T, method string, u *url.URL) (op *openapi3.Operation, known bool) {
	segments := strings.Split(u.EscapedPath(), "/")
	best := -1
	for path, item := range doc.Paths.Map() {
		template := strings.Split(path, "/")
		if len(template) != len(segments) {
			continue
		}
		literal := 0
		for i, want := range template {
			switch {
			case strings.HasPrefix(want, "{") && segments[i] != "":
			case want == segments[i]:
				literal++
			default:
				literal = -len(template)
			}
		}
		if literal < 0 {
			continue
		}
		known = true
		if found := item.GetOperation(method); found != nil && literal > best {
			op, best = found, literal
		}
	}
	return op, known
}

func checkAnswer(documented *openapi3.Response, resp *http.Response, body []byte) (problems []string) {
	for name, header := range documented.Headers {
		if header.Value.Required && resp.Header.Get(name) == "" {
			problems = append(problems, "header "+name+" is missing")
		}
	}
	// The document cannot say so: generators need one Retry-After for all responses, which is
	// optional with 409.
	if resp.Header.Get("Retry-After") == "" && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		problems = append(problems, "header Retry-After is missing")
	}
	for _, name := range []string{"Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "X-View-Age"} {
		if resp.Header.Get(name) != "" && documented.Headers[name] == nil {
			problems = append(problems, "header "+name+" is not documented")
		}
	}
	media := documented.Content.Get(resp.Header.Get("Content-Type"))
	if media == nil {
		return append(problems, "undocumented content type "+resp.Header.Get("Content-Type"))
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		problems = append(problems, checkJSON(media.Schema.Value, body)...)
	}
	if codes, ok := documented.Extensions["x-codes"].([]any); ok && !slices.Contains(codes, any(codeOf(body))) {
		problems = append(problems, fmt.Sprintf("code %q is not documented here: %v", codeOf(body), codes))
	}
	return problems
}

func checkCall(op *openapi3.Operation, r *http.Request, sent []byte) (problems []string) {
	for name := range r.URL.Query() {
		if op.Parameters.GetByInAndName("query", name) == nil {
			problems = append(problems, "parameter "+name+"  is accepted but not documented")
		}
	}
	switch {
	case len(bytes.TrimSpace(sent)) == 0:
		if op.RequestBody != nil && op.RequestBody.Value.Required {
			problems = append(problems, "a body is required but was missing")
		}
	case op.RequestBody == nil:
		problems = append(problems, "a body is accepted but not documented")
	default:
		problems = append(problems, checkJSON(op.RequestBody.Value.Content.Get("application/json").Schema.Value, sent)...)
	}
	return problems
}

func checkJSON(schema *openapi3.Schema, text []byte) []string {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return []string{"not JSON: " + err.Error()}
	}
	if err := schema.VisitJSON(v, openapi3.MultiErrors()); err != nil {
		return []string{err.Error()}
	}
	fits := func(one *openapi3.SchemaRef) bool { return one.Value.VisitJSON(v) == nil && hasConstants(one.Value, v) }
	if len(schema.OneOf) > 0 && !slices.ContainsFunc(schema.OneOf, fits) {
		return []string{fmt.Sprintf("oneOf: %s has the constants of no schema", text)}
	}
	return nil
}

// hasConstants reports whether each property of an object that the schema makes constant has
// that value. VisitJSON does not check it.
func hasConstants(schema *openapi3.Schema, v any) bool {
	fields, _ := v.(map[string]any)
	for name, property := range schema.Properties {
		if want := property.Value.Const; want != nil && fields[name] != want {
			return false
		}
	}
	return true
}

func codeOf(body []byte) string {
	var e struct{ Error struct{ Code string } }
	_ = json.Unmarshal(body, &e)
	return e.Error.Code
}
