package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
)

// clusterOf returns a cluster whose calls go to a handler in place of Nomad.
func clusterOf(t *testing.T, nomad http.HandlerFunc) *Cluster {
	t.Helper()
	srv := httptest.NewServer(nomad)
	t.Cleanup(srv.Close)
	client, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return New(client, "default", Mkdir, hclog.NewNullLogger())
}

// The stream begins at Nomad's current index, not with everything that the server has kept,
// and before the lists, so that no event is missed in between.
func TestStreamBeginsWhereNomadIs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := make(chan string, 10)
	c := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Nomad-Index", "4711")
		switch r.URL.Path {
		case "/v1/event/stream":
			calls <- "stream from " + r.URL.Query().Get("index")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			if r.URL.Query().Has("resources") {
				calls <- "list of " + r.URL.Path
			}
			_, _ = w.Write([]byte("[]"))
		}
	})
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	<-c.Synced()
	for _, want := range []string{"stream from 4711", "list of /v1/nodes", "list of /v1/allocations"} {
		if got := <-calls; got != want {
			t.Errorf("got the %s, want the %s", got, want)
		}
	}
	cancel()
	<-done
}

// A stream that sends nothing, not even its headers, is reopened.
func TestStreamThatStalls(t *testing.T) {
	for name, open := range map[string]func(http.ResponseWriter){
		"BeforeItOpens": func(http.ResponseWriter) {},
		"WhenItIsOpen":  func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			streams := make(chan struct{}, 10)
			c := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Nomad-Index", "4711")
				if r.URL.Path != "/v1/event/stream" {
					_, _ = w.Write([]byte("[]"))
					return
				}
				streams <- struct{}{}
				open(w)
				<-r.Context().Done()
			})
			c.silence = 100 * time.Millisecond
			done := make(chan struct{})
			go func() { defer close(done); c.Run(ctx) }()
			for range 2 {
				select {
				case <-streams:
				case <-time.After(20 * time.Second):
					t.Error("the stream that stalls is not given up")
				}
			}
			cancel()
			<-done
		})
	}
}

// A stream that ends without a byte is reported as one that Nomad refuses, and one that
// ends later is not.
func TestStreamThatEnds(t *testing.T) {
	for said, refused := range map[string]bool{"": true, "{}\n": false} {
		t.Run(fmt.Sprintf("After%d", len(said)), func(t *testing.T) {
			c := clusterOf(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Nomad-Index", "4711")
				if r.URL.Path == "/v1/event/stream" {
					_, _ = w.Write([]byte(said))
					return
				}
				_, _ = w.Write([]byte("[]"))
			})
			err := c.follow(t.Context())
			if err == nil || errors.Is(err, errNoByte) != refused {
				t.Errorf("got %v", err)
			}
		})
	}
}
