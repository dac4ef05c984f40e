package chaos

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
)

// TestNetwork: hosts reach each other, except while one is disconnected or they are
// separated.
func TestNetwork(t *testing.T) {
	if err := devstack.NeedIsolation(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	n, err := devstack.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, name := range []string{"a", "b"} {
		addr, err := n.AddHost(name, 2+i)
		if err != nil {
			t.Fatal(err)
		}
		var l net.Listener
		if err := n.On(name, func() (err error) { l, err = net.Listen("tcp", addr+":80"); return err }); err != nil {
			t.Fatal(err)
		}
		accepted := make(chan struct{})
		go func() {
			defer close(accepted)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		t.Cleanup(func() { _ = l.Close(); <-accepted })
	}
	// It takes a second until a packet to a missing host is given up.
	const way = 500 * time.Millisecond
	reach := func(from, to string) bool {
		dial := func() error {
			c, err := net.DialTimeout("tcp", n.Addr(to)+":80", way)
			if err == nil {
				_ = c.Close()
			}
			return err
		}
		if from == "" {
			return dial() == nil
		}
		return n.On(from, dial) == nil
	}
	want := func(when string, pairs map[string]bool) {
		t.Helper()
		for pair, want := range pairs {
			from, to, _ := strings.Cut(pair, ">")
			err := eventually(t.Context(), 60*time.Second, func() error {
				if got := reach(from, to); got != want {
					return errReach
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %s reaches: want %t", when, pair, want)
			}
		}
	}
	all := map[string]bool{">a": true, ">b": true, "a>b": true, "b>a": true}
	want("at first", all)
	for when, fault := range map[string]struct {
		begin func() error
		want  map[string]bool
	}{
		"cut":    {func() error { return n.Cut("a") }, map[string]bool{">a": false, ">b": true, "a>b": false, "b>a": false, "a>a": true}},
		"parted": {func() error { return n.Part("a", "b") }, map[string]bool{">a": true, ">b": true, "a>b": false, "b>a": false, "a>a": true}},
	} {
		if err := fault.begin(); err != nil {
			t.Fatal(err)
		}
		want(when, fault.want)
		if err := n.Heal("a", "b"); err != nil {
			t.Fatal(err)
		}
		want("healed after "+when, all)
	}
	for name, silent := range map[string]bool{"a": true, "b": false} {
		if err := n.Deny(name, 70, 90, silent); err != nil {
			t.Fatal(err)
		}
	}
	want("denied", map[string]bool{">a": true, ">b": true, "a>b": false, "b>a": false, "a>a": true})
	if err := n.On("nobody", func() error { return nil }); err == nil {
		t.Error("a host that is not there runs something")
	}
}
