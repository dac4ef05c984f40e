package boot

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/registry"
)

// What Consul stores about an engine counts as much as what it says itself, as far as it
// goes.
func TestReadStanding(t *testing.T) {
	output := func(status, body string) string {
		return "HTTP GET http://10.0.0.1:20001/health: " + status + " Output: " + body
	}
	for name, c := range map[string]struct {
		standing       registry.Standing
		output         string
		busy           bool
		fails, settled bool
		failing        []string
	}{
		"passing":           {standing: registry.Passing, output: output("200 OK", `{"status":"ok"}`)},
		"busy":              {standing: registry.Passing, output: output("200 OK", `{"status":"ok","busy":true}`), busy: true},
		"passing, unknown":  {standing: registry.Passing},
		"passing, cut":      {standing: registry.Passing, output: output("200 OK", `{"status":"ok","busy":tr`)},
		"busy, cut":         {standing: registry.Passing, output: output("200 OK", `{"status":"ok", "busy": true, "subsystems":{"a":"o`), busy: true},
		"critical":          {standing: registry.Critical, output: output("503 Service Unavailable", `{"status":"failing","subsystems":{"brain":"ok","provider":"down"}}`), fails: true, settled: true, failing: []string{"provider"}},
		"critical, no body": {standing: registry.Critical, output: output("503 Service Unavailable", ``), fails: true, settled: true},
		"no response":       {standing: registry.Critical, output: `Get "http://10.0.0.1:20001/health": context deadline exceeded`, fails: true, settled: true},
		"critical, old":     {standing: registry.Critical, output: output("200 OK", `{"status":"ok"}`), fails: true, settled: true},
		"not run":           {standing: registry.Absent, fails: true},
		"agent dead":        {standing: registry.Unknown, output: output("200 OK", `{"status":"ok","busy":true}`), fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			busy, err := readStanding(&registry.Instance{Standing: c.standing, Output: c.output})
			if busy != c.busy || (err != nil) != c.fails {
				t.Fatalf("got %t, %v", busy, err)
			}
			var told *Secondhand
			if errors.As(err, &told) != c.fails || c.fails && told.Settled != c.settled {
				t.Errorf("got %#v", err)
			}
			var u *Unable
			if errors.As(err, &u); (u != nil) != (c.failing != nil) || u != nil && !slices.Equal(u.Failing, c.failing) {
				t.Errorf("got %v, want that %v fail", err, c.failing)
			}
		})
	}
}

// instances is a catalog in which every engine can serve.
type instances struct{}

func (instances) InstanceOf(context.Context, string, string) (*registry.Instance, error) {
	return &registry.Instance{Standing: registry.Passing}, nil
}

// What Consul reports counts only if the service does not reach the engine's node: a node
// that it reached has engines that accept connections, or that have failed.
func TestNodeReachedLately(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	_ = l.Close()
	for by, want := range map[Detection][2]bool{ByProbe: {false, false}, ByConsul: {true, true}, ByEither: {true, false}} {
		d := NewDetector(by, NewProber(20*time.Second, nil), instances{}, nil)
		before := d.Health(t.Context(), Process{URL: nobody}) == nil
		if !d.Reaches(t.Context(), engineStub(t, says(200, `{"status":"ok"}`)), 20*time.Second) {
			t.Fatal("the node is not reached")
		}
		if after := d.Health(t.Context(), Process{URL: nobody}) == nil; [2]bool{before, after} != want {
			t.Errorf("%s: healthy before and after the node was reached: %t, %t, want %v", by, before, after, want)
		}
	}
}

// For an engine that is to be given to a user, or put to sleep, Consul counts only after
// connections to its node have failed for a while.
func TestNodeOutOfReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := Process{URL: "http://" + l.Addr().String()}
	_ = l.Close()
	d := NewDetector(ByEither, NewProber(20*time.Second, nil), instances{}, nil)
	serves := func() bool {
		serves := d.Serves(t.Context(), nobody, 20*time.Second) == nil
		if _, err := d.Busy(t.Context(), nobody); (err == nil) != serves {
			t.Errorf("it serves: %t, but whether it is busy: %v", serves, err)
		}
		return serves
	}
	if serves() {
		t.Error("the first failed connection counts")
	}
	d.dialer.failing.Store("127.0.0.1", time.Now().Add(-unreachedFor))
	if !serves() {
		t.Error("Consul does not count although the node is out of reach")
	}
	if err := d.Health(t.Context(), Process{URL: engineStub(t, says(200, `{"status":"ok"}`))}); err != nil {
		t.Fatal(err)
	}
	if serves() {
		t.Error("what failed before the node was reached counts")
	}
}

// An engine counts as reached if it accepts the connection, whatever it does then.
func TestUnreached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	_ = l.Close()
	hangs := engineStub(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	p := NewProber(time.Minute, nil)
	for url, want := range map[string]bool{nobody: false, hangs: true, engineStub(t, says(503, "")): true} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := p.Health(ctx, url)
		cancel()
		var unreached *Unreached
		if err == nil || errors.As(err, &unreached) == want {
			t.Errorf("%s: got %v, want that it is reached: %t", url, err, want)
		}
		if got := p.Reaches(t.Context(), url, 20*time.Second); got != want {
			t.Errorf("%s is reached: %t, want %t", url, got, want)
		}
	}
}
