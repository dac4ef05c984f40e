package cluster

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// TestFeedOfALockedNomad: with a token that has the shipped policy, changes come by the
// event stream, without another list. A stream that Nomad refuses is reported as that.
func TestFeedOfALockedNomad(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{Locked: true, InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	}()
	transport := &http.Transport{TLSClientConfig: stack.TLS()}
	defer transport.CloseIdleConnections()
	// as is a client with a token, whose requests pass through a transport.
	as := func(t *testing.T, token string, through http.RoundTripper) *api.Client {
		t.Helper()
		cfg := stack.NomadConfig()
		cfg.SecretID, cfg.HttpClient = token, &http.Client{Transport: through}
		client, err := api.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return client
	}
	operator := as(t, stack.Operator().NomadToken, transport)

	t.Run("OK", func(t *testing.T) {
		var lists atomic.Int32
		c := New(as(t, stack.Orch().NomadToken, roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/v1/allocations" && r.URL.Query().Has("resources") {
				lists.Add(1)
			}
			return transport.RoundTrip(r)
		})), stack.Namespace, Mkdir, hclog.NewNullLogger())
		runFeed(t, c)
		<-c.Synced()
		job, one := markedJob("engine-in-the-stream", ""), 1
		job.TaskGroups[0].Count = &one
		if _, _, err := operator.Jobs().Register(job, nil); err != nil {
			t.Fatal(err)
		}
		until(t, "the view has the allocation", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.view.byJob[*job.ID]) > 0
		})
		if n := lists.Load(); n != 1 {
			t.Errorf("it was found by list number %d, want by the stream after the first", n)
		}
	})
	t.Run("ErrRefused", func(t *testing.T) {
		rules := `namespace "default" { capabilities = ["read-job"] }` + "\n" + `node { policy = "read" }`
		if _, err := operator.ACLPolicies().Upsert(&api.ACLPolicy{Name: "no-stream", Rules: rules}, nil); err != nil {
			t.Fatal(err)
		}
		token, _, err := operator.ACLTokens().Create(&api.ACLToken{Name: "no-stream", Type: "client", Policies: []string{"no-stream"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		log := &lockedBuffer{}
		c := New(as(t, token.SecretID, transport), stack.Namespace, Mkdir, hclog.New(&hclog.LoggerOptions{Output: log}))
		c.silence = 2 * time.Second // it has been silent since it was opened
		runFeed(t, c)
		until(t, "the refusal is reported", func() bool {
			text := log.String()
			return strings.Contains(text, "[WARN]") && strings.Contains(text, "probably refuses") && strings.Contains(text, "read-job in the namespace engines")
		})
	})
}

// runFeed runs a cluster's feed until the test ends.
func runFeed(t *testing.T, c *Cluster) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// lockedBuffer is one that several goroutines may use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
