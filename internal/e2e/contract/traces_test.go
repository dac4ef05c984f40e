package contract

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/ops"
)

// receiver is a receiver of OTLP over HTTP.
type receiver struct {
	mu    sync.Mutex
	raw   []byte
	spans []*trace.Span
	wrong []string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var got collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || req.URL.Path != "/v1/traces" {
		r.wrong = append(r.wrong, fmt.Sprintf("%s: %v", req.URL.Path, err))
	}
	r.raw = append(r.raw, body...)
	for _, of := range got.GetResourceSpans() {
		for _, scope := range of.GetScopeSpans() {
			r.spans = append(r.spans, scope.GetSpans()...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// of returns the spans of a trace by their name.
func (r *receiver) of(traceID string) map[string]*trace.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	spans := map[string]*trace.Span{}
	for _, s := range r.spans {
		if hex.EncodeToString(s.GetTraceId()) == traceID {
			spans[s.GetName()] = s
		}
	}
	return spans
}

// attribute returns an attribute of a span, as text.
func attribute(s *trace.Span, name string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == name {
			if n := a.GetValue().GetIntValue(); n != 0 {
				return fmt.Sprint(n)
			}
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// TestTraces: a request within the span of its caller, its operation and the steps of that
// are one trace, also if the caller does not wait for the operation.
func TestTraces(t *testing.T) { // not parallel, because it sets variables of the process
	got := &receiver{}
	srv := httptest.NewServer(got)
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	stop, err := ops.ExportTraces(t.Context(), os.Getenv, "test", hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(stop)
	defer stop()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "0", "ORCH_CONSUL_PREFIX": "traces/"})
	c := r.Product(t, nil)
	const user = "a-user-of-traces"
	const provisioned, stopped = "0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319d"
	const parent = "b7ad6b7169203331"
	send := func(traceID, path, body, prefer string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{harness.PlatformHeader: c.PlatformKey, "traceparent": "00-" + traceID + "-" + parent + "-01", "Prefer": prefer} {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	if resp := send(provisioned, "/engines/provision", `{"user_id": "`+user+`"}`, ""); resp.StatusCode != 200 {
		t.Fatalf("provision: %s", resp.Status)
	}
	if resp := send(stopped, "/engines/"+user+"/stop", "", "respond-async"); resp.StatusCode != 202 {
		t.Fatalf("stop: %s", resp.Status)
	}
	harness.AwaitEngine(t, c, user, client.Stopped, "")
	e, err := c.Engine(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	stop()
	if len(got.wrong) > 0 {
		t.Fatalf("received %v", got.wrong)
	}

	spans := got.of(provisioned)
	within := func(inner, outer string) {
		t.Helper()
		if spans[inner] == nil || spans[outer] == nil || !bytes.Equal(spans[inner].GetParentSpanId(), spans[outer].GetSpanId()) {
			t.Errorf("%q is not within %q", inner, outer)
		}
	}
	request := spans["POST /engines/provision"]
	if request == nil || hex.EncodeToString(request.GetParentSpanId()) != parent {
		t.Fatalf("no span of the request within its caller's: %v", spans)
	}
	if got := attribute(request, "http.response.status_code") + " " + attribute(request, "http.route"); got != "200 /engines/provision" {
		t.Errorf("status and route are %q", got)
	}
	within("operation provision", "POST /engines/provision")
	for _, step := range []string{"volume", "key", "variable", "register", "boot"} {
		within(step, "operation provision")
	}
	if id := attribute(spans["operation provision"], "orch.engine_id"); id != e.EngineID {
		t.Errorf("the operation is of %q, want %q", id, e.EngineID)
	}
	evaluation := attribute(spans["register"], "nomad.evaluation_id")
	eval, _, err := harness.OpenStores(t, harness.Shared).Nomad.Evaluations().Info(evaluation, nil)
	if err != nil || !strings.HasSuffix(eval.JobID, e.EngineID) {
		t.Errorf("Nomad's evaluation %q: %+v, %v", evaluation, eval, err)
	}

	spans = got.of(stopped)
	within("operation stop", "POST /engines/{user_id}/stop")
	within("drain", "operation stop")
	if operation := spans["operation stop"]; operation.GetEndTimeUnixNano() <= spans["POST /engines/{user_id}/stop"].GetEndTimeUnixNano() {
		t.Error("the operation did not outlive its request, so the test is blind")
	}
	for _, secret := range []string{user, c.PlatformKey, harness.AdminKey, harness.ProviderKey} {
		if bytes.Contains(got.raw, []byte(secret)) {
			t.Errorf("the traces contain %q", secret)
		}
	}
}
