package health

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// strangers are foreign processes on ports that Nomad regards as free. They return 200 to
// every request, and store the keys that they get.
type strangers struct {
	mu   sync.Mutex
	told []string
}

func (s *strangers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if key := r.Header.Get("X-Engine-Key"); key != "" {
		s.mu.Lock()
		s.told = append(s.told, key)
		s.mu.Unlock()
	}
	_, _ = io.WriteString(w, `{"status": "ok", "uptime_seconds": 1, "subsystems": {}}`)
}

// knows reports whether they got a key.
func (s *strangers) knows(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.told, key)
}

// listen listens on a port until the test ends.
func (s *strangers) listen(t *testing.T, port int) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { _ = srv.Close(); serving.Wait() })
}

// dynamicPorts returns the port range that the only node gives to engines.
func dynamicPorts(s *harness.Stores) (low, high int) {
	s.T.Helper()
	node, _, err := s.Nomad.Nodes().Info(s.ReadyNode(), nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return node.NodeResources.MinDynamicPort, node.NodeResources.MaxDynamicPort
}

// A third of the ports that Nomad regards as free are in use by foreign processes. Engines
// get the others, whatever the strangers return, and no stranger gets a key. (With half of
// them, one start in 130 would meet a stranger eleven times, and give up.)
func TestStrangersOnPorts(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t, devstack.Config{DynamicPorts: [2]int{0, 16}})
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=strangers/", "ORCH_VOLUME_POOL=4"))
	s, c, ctx := harness.OpenStores(t, stack), r.Product(t, nil), t.Context()
	theirs, taken := &strangers{}, map[string]bool{}
	low, high := dynamicPorts(s)
	for port := low; port <= high; port += 3 {
		theirs.listen(t, port)
		taken[fmt.Sprintf("http://127.0.0.1:%d", port)] = true
	}
	var keys []string
	own := func(t *testing.T, user string, e *client.Engine) {
		t.Helper()
		if taken[e.URL] {
			t.Fatalf("%s has the address of a stranger", user)
		}
		keys = append(keys, e.APIKey)
		if err := harness.Export(t, e, e.APIKey).Knows(user); err != nil {
			t.Error(err)
		}
	}
	var users []string
	for i := range 4 {
		user := fmt.Sprintf("user-%d", i)
		e, err := c.Provision(ctx, user, "")
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, user)
		harness.Remember(t, e, e.APIKey, user)
		own(t, user, e)
	}
	for _, user := range users {
		if _, err := c.Stop(ctx, user); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx, user); err != nil {
			t.Fatal(err)
		}
		own(t, user, harness.IsNow(t, c, user, "running", ""))
	}
	// The same if the process ends by itself, and a stranger takes its port before the next
	// process.
	e, err := c.Engine(ctx, users[0])
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(e.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	harness.CrashEngine(t, e)
	harness.Eventually(t, "a stranger has its port", func() error {
		var n int
		if _, err := fmt.Sscan(port, &n); err != nil {
			return err
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n))
		if err != nil {
			return err
		}
		_ = l.Close()
		theirs.listen(t, n)
		return nil
	})
	taken[e.URL] = true
	var back *client.Engine
	harness.Eventually(t, "it runs elsewhere", func() error {
		if back, err = harness.EngineIs(t, c, users[0], "running", ""); err != nil {
			return err
		}
		if taken[back.URL] {
			return fmt.Errorf("its URL is %s", back.URL)
		}
		return nil
	})
	own(t, users[0], back)
	for _, key := range keys {
		if theirs.knows(key) {
			t.Error("a stranger got an engine's key")
		}
	}
	for _, user := range users {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}
