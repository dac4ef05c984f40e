package brains

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/brain/store/storetest"
	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/jobs"
)

// hook responds to a request for the bucket, or returns false: then the server does.
type hook func(w http.ResponseWriter, r *http.Request) bool

// bucket is a real S3 server behind a proxy, which fails for single engines.
type bucket struct {
	*storetest.Gateway
	store.Store // directly
	via         string
	forward     *httputil.ReverseProxy

	mu         sync.Mutex
	hooks      map[string]hook // by engine_id
	signatures map[string]bool // of the requests so far
}

func newBucket(t *testing.T) *bucket {
	t.Helper()
	return newBucketOn(t, "127.0.0.1")
}

// newBucketOn returns a bucket at an address of this machine.
func newBucketOn(t *testing.T, host string) *bucket {
	t.Helper()
	return newBucketBehind(t, func(addr string) *storetest.Proxy { return storetest.StartProxyOn(t, host, addr) })
}

func newBucketBehind(t *testing.T, proxy func(addr string) *storetest.Proxy) *bucket {
	t.Helper()
	b := &bucket{Gateway: storetest.Start(t), hooks: map[string]hook{}, signatures: map[string]bool{}}
	p := proxy(b.Addr)
	p.Hook(b.answer)
	b.via = p.Addr
	b.forward = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: b.Addr})
		r.Out.Host = r.In.Host // it is signed
	}}
	var err error
	if b.Store, err = store.Open(b.StoreURL(""), storetest.Credentials); err != nil {
		t.Fatal(err)
	}
	return b
}

// vars is the configuration of a service with this bucket.
func (b *bucket) vars(more ...string) map[string]string {
	return harness.With(map[string]string{
		"ORCH_SNAPSHOT_URL": b.StoreURL(b.via), "ORCH_SNAPSHOT_ACCESS_KEY": storetest.Credentials.AccessKey,
		"ORCH_SNAPSHOT_SECRET_KEY": storetest.Credentials.SecretKey, "ORCH_SNAPSHOTS_PER_NODE": "4", "ORCH_VOLUME_POOL": "4",
	}, more...)
}

func (b *bucket) answer(w http.ResponseWriter, r *http.Request) bool {
	b.mu.Lock()
	if s := r.URL.Query().Get("X-Amz-Signature"); s != "" {
		b.signatures[s] = true
	}
	var h hook
	for id, one := range b.hooks {
		if strings.Contains(r.URL.Path+r.URL.Query().Get("prefix"), "/"+id+"/") {
			h = one
		}
	}
	b.mu.Unlock()
	return h != nil && h(w, r)
}

// fails sets what responds to the requests about an engine; nil: the server.
func (b *bucket) fails(engineID string, h hook) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks[engineID] = h
}

// path returns where the server keeps a name of the store.
func (b *bucket) path(name string) string {
	return filepath.Join(b.Dir, storetest.Bucket, "some/prefix", name)
}

func (b *bucket) object(engineID, snapshotID string) string {
	return b.path("objects/" + engineID + "/" + snapshotID + ".tar.zst.age")
}

func (b *bucket) manifest(engineID, snapshotID string) string {
	return b.path("manifests/" + engineID + "/" + snapshotID + ".json")
}

// names lists the ids of an engine's snapshots in one of the store's two directories.
func (b *bucket) names(directory, engineID string) []string {
	entries, _ := os.ReadDir(b.path(directory + "/" + engineID)) // without objects there is none
	var ids []string
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		ids = append(ids, id)
	}
	return ids
}

// The requests that fail.
func isPart(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Has("partNumber")
}

func isBegin(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploads")
}

func isCompletion(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
}

func isManifest(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
}

func isFetch(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/objects/") && !r.URL.Query().Has("uploadId")
}

func isAny(*http.Request) bool { return true }

// status responds to requests with an error of S3.
func status(which func(*http.Request) bool, code int, name string) hook {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if which(r) {
			storetest.Status(w, code, name)
			return true
		}
		return false
	}
}

// cut loses the connections of requests in the middle of their content.
func cut(which func(*http.Request) bool) hook {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if which(r) {
			storetest.Lose(r, r.ContentLength/2)
		}
		return false
	}
}

// lost carries requests out, and loses the responses.
func (b *bucket) lost(which func(*http.Request) bool) hook {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if which(r) {
			b.forward.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		return false
	}
}

// cutResponse sends half of what the server responds.
func (b *bucket) cutResponse(which func(*http.Request) bool) hook {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !which(r) {
			return false
		}
		all := httptest.NewRecorder()
		b.forward.ServeHTTP(all, r)
		for name, values := range all.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(all.Code)
		_, _ = w.Write(all.Body.Bytes()[:all.Body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// times lets a hook respond to so many requests of a kind.
func times(n int, which func(*http.Request) bool, h hook) hook {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !which(r) {
			return false
		}
		mu.Lock()
		n--
		mine := n >= 0
		mu.Unlock()
		return mine && h(w, r)
	}
}

// held lets the first request of a kind wait until it is released.
type held struct {
	came    chan struct{}
	release func()
}

// hold makes the first request of a kind wait. After that, h responds; nil: the server.
func (b *bucket) hold(t *testing.T, engineID string, which func(*http.Request) bool, h hook) held {
	came, over := make(chan struct{}), make(chan struct{})
	var first sync.Once
	b.fails(engineID, func(w http.ResponseWriter, r *http.Request) bool {
		if which(r) {
			first.Do(func() {
				close(came)
				<-over
			})
		}
		return h != nil && h(w, r)
	})
	release := sync.OnceFunc(func() { close(over) })
	t.Cleanup(release)
	return held{came, release}
}

// end releases a snapshot that has waited until now, and waits until it is stored.
func (h held) end(t *testing.T, taking <-chan result[*client.Snapshot]) {
	t.Helper()
	select {
	case <-taking:
		t.Error("the snapshot has ended before it was stored")
	default:
	}
	h.release()
	if taken := <-taking; taken.err != nil {
		t.Error(taken.err)
	}
}

// await waits until the request has come.
func (h held) await(t *testing.T) {
	t.Helper()
	select {
	case <-h.came:
	case <-time.After(harness.Patience):
		t.Fatal("the request does not come")
	}
}

// settled waits until nothing is being done with an engine.
func settled(t *testing.T, c *client.Client, user string) {
	t.Helper()
	harness.Eventually(t, "the operation of "+user+" ends", func() error {
		e, err := c.Engine(t.Context(), user)
		if err == nil && e.Operation != nil {
			err = fmt.Errorf("%s is at %s", e.Operation.Kind, e.Operation.Step)
		}
		return err
	})
}

// unharmed fails unless an engine runs as the process that it was, with its key, and knows
// all this.
func unharmed(t *testing.T, c *client.Client, e *client.Engine, knows ...string) {
	t.Helper()
	if err := harness.InState(t, c, e.UserID, "running"); err != nil {
		t.Error(err)
	}
	memory := harness.Export(t, e, e.APIKey)
	if len(memory.Runs) != 1 {
		t.Errorf("its process was started %d times", len(memory.Runs))
	}
	for _, what := range knows {
		if err := memory.Knows(what); err != nil {
			t.Error(err)
		}
	}
}

// tidy fails unless nothing is left of an engine's workers, and each object in the bucket
// has a manifest. It returns the ids of the engine's snapshots.
func (b *bucket) tidy(t *testing.T, engineID string) []string {
	t.Helper()
	s := harness.OpenStores(t, harness.Shared)
	prefix := jobs.WorkerPrefix + engineID
	harness.Eventually(t, "no worker is left", func() error {
		left, _, err := s.Nomad.Jobs().PrefixList(prefix)
		if err != nil || len(left) > 0 {
			return fmt.Errorf("%d jobs, %w", len(left), err)
		}
		orders, _, err := s.Nomad.Variables().PrefixList("nomad/jobs/"+prefix, nil)
		if err != nil || len(orders) > 0 {
			return fmt.Errorf("%d orders, %w", len(orders), err)
		}
		return nil
	})
	objects, manifests := b.names("objects", engineID), b.names("manifests", engineID)
	if strings.Join(objects, " ") != strings.Join(manifests, " ") {
		t.Errorf("objects %v, manifests %v", objects, manifests)
	}
	return manifests
}

// noUploads fails if an upload is left in the bucket. Nothing may be uploaded meanwhile.
func (b *bucket) noUploads(t *testing.T) {
	t.Helper()
	if n, err := b.Sweep(context.Background(), time.Now().Add(time.Hour)); err != nil || n > 0 {
		t.Errorf("%d uploads are left, %v", n, err)
	}
}

// edit changes a file.
func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// result is what a call in the background returned.
type result[T any] struct {
	of  T
	err error
}

func begin[T any](call func() (T, error)) <-chan result[T] {
	done := make(chan result[T], 1)
	go func() {
		of, err := call()
		done <- result[T]{of, err}
	}()
	return done
}

// codeOf returns the code of an error response, or "".
func codeOf(err error) string {
	var e *client.Error
	if errors.As(err, &e) {
		return string(e.Code)
	}
	return ""
}
