package cli

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestOpenNomad: the service does not work with a Nomad whose ACLs are off, unless that is
// permitted. A Nomad that does not respond yet is not taken for one.
func TestOpenNomad(t *testing.T) {
	t.Parallel()
	stack := harness.Shared
	if harness.Locked {
		open, err := devstack.Start(t.Context(), devstack.Config{Binaries: harness.Binaries})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := open.Stop(); err != nil {
				t.Error(err)
			}
		})
		stack = open
	}
	orch, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	nomad, err := url.Parse(stack.NomadAddr)
	if err != nil {
		t.Fatal(err)
	}
	addr := harness.FreeAddr(t)
	p := harness.Launch(t, orch, stack, "open-nomad/", "sqlite://"+filepath.Join(t.TempDir(), "audit.db"),
		"NOMAD_ADDR=http://"+addr, "ORCH_ALLOW_OPEN_NOMAD=false")
	harness.Eventually(t, "it has asked Nomad in vain", func() error {
		if p.Dead() {
			t.Fatal("it ended, although Nomad did not respond")
		}
		if p.Log.Count("[WARN]", "in=") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(nomad)
	forward.ErrorLog = log.New(io.Discard, "", 0) // the service ends while it waits for responses
	proxy := &http.Server{Handler: forward}
	t.Cleanup(func() { _ = proxy.Close() })
	go func() { _ = proxy.Serve(listener) }()
	harness.Eventually(t, "it ends", func() error {
		if !p.Dead() {
			return errors.New("it runs")
		}
		return nil
	})
	for allow, want := range map[string]int{"false": 1, "true": 0} {
		check := exec.Command(orch, "server", "-check")
		check.Env = append(slices.Clone(p.Cmd.Env), "ORCH_ALLOW_OPEN_NOMAD="+allow)
		out, _ := check.Output()
		if code := check.ProcessState.ExitCode(); code != want || !strings.Contains(string(out), "acl enabled") {
			t.Errorf("orch server -check with ORCH_ALLOW_OPEN_NOMAD=%s: exit code %d\n%s", allow, code, out)
		}
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"ORCH_ALLOW_OPEN_NOMAD=true", "docs/install.md"} {
		if !strings.Contains(p.Log.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if n, err := harness.OpenStores(t, stack).Engines("open-nomad/"); err != nil || len(n) != 0 {
		t.Errorf("it made %d engines (%v)", len(n), err)
	}
}
