package clients

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/contract"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// wholeLife is what each generated client calls, with the status of the response.
var wholeLife = []string{
	"admit 200", "destroyEngine 200", "getEngine 200", "getEngine 404", "listEngines 200", "provision 200", "rotateKey 200", "startEngine 200", "stopEngine 200",
}

// TestGenerated: ogen, oapi-codegen and openapi-typescript generate clients from the
// document, which compile, and take an engine through its life, while Prism checks each
// request and response against the document.
func TestGenerated(t *testing.T) {
	t.Parallel()
	dir := checkout(t, "tools/openapi")
	r := harness.StartService(t, harness.Shared, nil)
	seen := newWatched(t, r.URL)
	prism := startPrism(t, dir, seen.url)

	t.Run("the proxy checks", func(t *testing.T) { checksBoth(t, prism, r.Product(t, harness.AnyImage).PlatformKey, seen) })
	// One after the other: the compilers use all cores.
	programs := filepath.Join(dir, "programs")
	// The results of the compiler may be used again by the next run, from another directory.
	flags := []string{"GOFLAGS=-trimpath"}
	run(t, dir, flags, "go", "generate", "./...")
	run(t, dir, flags, "go", "vet", "./ogen", "./oapi")
	run(t, dir, flags, "go", "build", "-o", programs+"/", "./ogen", "./oapi")
	run(t, dir, nil, bin(dir, "openapi-typescript"), "../../docs/openapi.yaml", "-o", "typescript/api.ts")
	run(t, dir, nil, bin(dir, "tsc"), "-p", "tsconfig.json")
	for name, command := range map[string][]string{
		"ogen": {filepath.Join(programs, "ogen")}, "oapi-codegen": {filepath.Join(programs, "oapi")},
		"openapi-typescript": {"node", filepath.Join(dir, "typescript", "build", "main.js")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := r.Product(t, harness.AnyImage).PlatformKey
			run(t, dir, []string{"ORCH_URL=" + prism, "ORCH_PLATFORM_KEY=" + key}, command[0], append(command[1:], "généré/"+name)...)
			if got := seen.of(key); !slices.Equal(got, wholeLife) {
				t.Errorf("it called %q, want %q", got, wholeLife)
			}
		})
	}
}

// startPrism runs Prism in front of an upstream, and returns its address.
func startPrism(t *testing.T, dir, upstream string) string {
	t.Helper()
	host, port, _ := strings.Cut(harness.FreeAddr(t), ":")
	cmd := exec.CommandContext(t.Context(), "node", bin(dir, "prism"), "proxy", "--errors", "--host", host, "--port", port, "../../docs/openapi.yaml", upstream)
	log := &harness.LogBuffer{}
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = dir, log, log, append(os.Environ(), "NO_COLOR=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // it ends with the test's context
		if t.Failed() {
			t.Logf("log of Prism:\n%s", harness.Tail(log.String(), 8000))
		}
	})
	c := &client.Client{BaseURL: "http://" + host + ":" + port}
	harness.Eventually(t, "Prism is ready", func() error { return c.Live(t.Context()) })
	return c.BaseURL
}

// tampered is the id of requests whose response watched changes.
const tampered = "tampered"

// watched forwards calls to a service, and records them. It stands between the service and
// Prism, so what it sees has passed Prism.
type watched struct {
	url string
	doc *openapi3.T

	mu   sync.Mutex
	seen map[string]map[string]bool // "operationId status" by platform key
}

func newWatched(t *testing.T, service string) *watched {
	t.Helper()
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{doc: doc, seen: map[string]map[string]bool{}}
	srv := httptest.NewServer(&httputil.ReverseProxy{Transport: w, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }})
	t.Cleanup(srv.Close)
	w.url = srv.URL
	return w
}

// RoundTrip forwards one call, as the tests' own client would make it.
func (w *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	resp, err := http.DefaultClient.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if op, _ := contract.Find(w.doc, r.Method, r.URL); op != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		key := r.Header.Get("X-Platform-Key")
		if w.seen[key] == nil {
			w.seen[key] = map[string]bool{}
		}
		w.seen[key][fmt.Sprint(op.OperationID, " ", resp.StatusCode)] = true
	}
	if r.Header.Get("X-Request-Id") == tampered {
		_ = resp.Body.Close()
		resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(`{"engines":[],"total":"none"}`)), -1
		resp.Header.Del("Content-Length")
	}
	return resp, nil
}

// of returns what was called with a key, sorted.
func (w *watched) of(key string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.seen[key]))
}

// checksBoth sends Prism a request and a response that the document does not allow.
func checksBoth(t *testing.T, prism, key string, seen *watched) {
	list := func(query, id string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, prism+"/engines"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Platform-Key", key)
		req.Header.Set("X-Request-Id", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := list("?limit=0", "r"); status != http.StatusUnprocessableEntity || len(seen.of(key)) > 0 {
		t.Errorf("a request that is not as documented: %d %s; the service got %v", status, body, seen.of(key))
	}
	if status, body := list("", "r"); status != http.StatusOK {
		t.Errorf("a request and a response as documented: %d %s", status, body)
	}
	if status, body := list("", tampered); status != http.StatusInternalServerError || !strings.Contains(body, "#VIOLATIONS") {
		t.Errorf("a response that is not as documented: %d %s", status, body)
	}
}
