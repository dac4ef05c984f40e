package substrate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-version"
	"github.com/hashicorp/hc-install/product"
	"github.com/hashicorp/nomad/api"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
)

// pinnedWithin limits the time to find a pinned agent; building one takes longer.
const pinnedWithin = 5 * time.Second

// stacks are the agents of this package's tests. Each is started by the first test that
// needs it.
var stacks struct {
	mu     sync.Mutex
	find   sync.Once
	err    error
	main   devstack.Binaries // the pinned Nomad, if it exists
	onPath string            // another Nomad; empty: there is none

	started map[string]*devstack.Stack // by the path of their Nomad
}

func TestMain(m *testing.M) {
	stacks.started = map[string]*devstack.Stack{}
	code := m.Run()
	for _, s := range stacks.started {
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// findAgents finds the agents to test. devstack uses a Nomad on PATH as its own; then the
// pinned one is tested as well, if it was built before.
func findAgents() {
	stacks.main, stacks.err = devstack.Tools(context.Background(), devstack.ToolOptions{})
	path, err := exec.LookPath("nomad")
	if err != nil || stacks.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), pinnedWithin)
	defer cancel()
	pinned := version.Must(version.NewVersion(devstack.NomadVersion))
	if found, err := product.Nomad.GetVersion(ctx, path); err != nil || found.Equal(pinned) {
		return
	}
	if built, err := devstack.Tools(ctx, devstack.ToolOptions{Pinned: true}); err == nil {
		stacks.main.Nomad, stacks.onPath = built.Nomad, path
	}
}

// stack returns the stack with the pinned Nomad, or with the one on PATH.
func stack(t *testing.T, onPath bool) *devstack.Stack {
	t.Helper()
	stacks.mu.Lock()
	defer stacks.mu.Unlock()
	stacks.find.Do(findAgents)
	if stacks.err != nil {
		t.Fatal(stacks.err)
	}
	binaries := stacks.main
	if onPath {
		if stacks.onPath == "" {
			t.Skip("no Nomad of another version on PATH")
		}
		binaries.Nomad = stacks.onPath
	}
	if s := stacks.started[binaries.Nomad]; s != nil {
		return s
	}
	s, err := devstack.Start(context.Background(), devstack.Config{Binaries: binaries})
	if err != nil {
		t.Fatal(err)
	}
	stacks.started[binaries.Nomad] = s
	return s
}

// eachNomad runs a test against the pinned Nomad and against the one on PATH.
func eachNomad(t *testing.T, test func(t *testing.T, s *devstack.Stack)) {
	for _, onPath := range []bool{false, true} {
		t.Run(map[bool]string{false: "Pinned", true: "OnPath"}[onPath], func(t *testing.T) {
			s := stack(t, onPath)
			t.Logf("Nomad %s", nomadVersion(t, nomadClient(t, s, nil)))
			test(t, s)
		})
	}
}

// webClient returns a separate HTTP client for one test, with the given transport, if any.
func webClient(t *testing.T, around func(http.RoundTripper) http.RoundTripper) *http.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	t.Cleanup(transport.CloseIdleConnections)
	if around == nil {
		return &http.Client{Transport: transport}
	}
	return &http.Client{Transport: around(transport)}
}

func nomadClient(t *testing.T, s *devstack.Stack, around func(http.RoundTripper) http.RoundTripper) *api.Client {
	t.Helper()
	client, err := api.NewClient(&api.Config{Address: s.NomadAddr, HttpClient: webClient(t, around)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// nomadVersion returns the version of a stack's only server.
func nomadVersion(t *testing.T, client *api.Client) *version.Version {
	t.Helper()
	members, err := client.Agent().Members()
	if err == nil && len(members.Members) != 1 {
		err = fmt.Errorf("%d servers", len(members.Members))
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := version.NewVersion(members.Members[0].Tags["build"])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually polls until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	const within, every = 2 * time.Minute, 20 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	late := time.After(within)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-late:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		case <-t.Context().Done():
			t.Fatal(errors.Join(t.Context().Err(), err))
		case <-tick.C:
		}
	}
}
