package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/fault"
)

// Faulty is an `orch server` that a fault point may end or pause.
type Faulty struct {
	*client.Client
	Cmd    *exec.Cmd
	Log    *LogBuffer
	exited chan struct{}
}

// StartFaulty starts a server on the shared agents and waits until it is ready;
// what is armed, "kill POINT" or "pause POINT", may keep it from that.
func StartFaulty(t *testing.T, prefix, database, armed string, env ...string) *Faulty {
	t.Helper()
	orch, err := faultyBinary()
	if err != nil {
		t.Fatal(err)
	}
	addr := FreeAddr(t)
	p := &Faulty{Client: &client.Client{BaseURL: "http://" + addr, AdminKey: AdminKey}, Log: &LogBuffer{}, exited: make(chan struct{})}
	p.Cmd = exec.Command(orch, "server")
	p.Cmd.Stderr = p.Log
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Cmd.Env = ServerEnv(t, Shared, addr, prefix, database,
		fault.Variable+"="+armed, "ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_VOLUME_POOL=2", "ORCH_LOG_LEVEL=debug")
	p.Cmd.Env = append(p.Cmd.Env, env...)
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.End()
		if t.Failed() {
			t.Logf("log of a server with %q armed:\n%s", armed, Tail(p.Log.String(), 6000))
		}
	})
	Eventually(t, "orch server is ready", func() error {
		if p.Dead() {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return p.Ready(ctx)
	})
	return p
}

// FailingImage is of an engine that exits when it starts.
const FailingImage = "reference-engine.exit-at-start"

// End kills it, paused or not.
func (p *Faulty) End() {
	_ = p.Cmd.Process.Kill()
	<-p.exited
}

// Dead says whether the process has ended.
func (p *Faulty) Dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// AwaitDeath waits until the armed point has ended the process.
func (p *Faulty) AwaitDeath(within time.Duration) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-timer.C:
		return fmt.Errorf("the process is alive after %s", within)
	case <-p.exited:
	}
	if status, ok := p.Cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("the process ended with %s", p.Cmd.ProcessState)
	}
	return nil
}

// AwaitPause waits until the armed point has paused the process.
func (p *Faulty) AwaitPause(t *testing.T) {
	t.Helper()
	Eventually(t, "the process is paused", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
		if err != nil {
			return err
		}
		var pid int
		var name, state string
		if _, err := fmt.Sscanf(string(b), "%d %s %s", &pid, &name, &state); err != nil {
			return err
		}
		if state != "T" {
			return errors.New("its state is " + state)
		}
		return nil
	})
}

// Signal sends the process a signal.
func (p *Faulty) Signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// NeverRecovered fails the test if the registry was ever taken for one that went
// back in time. Nothing went back: a service was killed, no store restored.
func (p *Faulty) NeverRecovered(t *testing.T) {
	t.Helper()
	status, err := p.Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.State != "ok" || status.LastRecovery != nil || status.Keys != "ok" {
		t.Errorf("the registry is %+v, and was recovered: %+v", status, status.LastRecovery)
	}
}

// ConsulWay is a way to the shared Consul on which some requests get no answer, as
// on a connection of which one end is gone.
func ConsulWay(t *testing.T, silent func(*http.Request) bool) string {
	t.Helper()
	return ConsulProxy(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if !silent(r) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // else the end of the request is not seen
		<-r.Context().Done()
		return true
	})
}

// ConsulProxy is a way to the shared Consul for all requests but those that answered
// takes care of.
func ConsulProxy(t *testing.T, answered func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	consul, err := url.Parse(Shared.ConsulAddr)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(consul) }}
	way := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answered(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(way.Close)
	return way.URL
}
