package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/fault"
)

// faulty is an `orch server` that a fault point may end or pause.
type faulty struct {
	*client.Client
	cmd    *exec.Cmd
	log    *logBuffer
	exited chan struct{}
}

// startFaulty starts a server on the shared agents and waits until it is ready;
// what is armed, "kill POINT" or "pause POINT", may keep it from that.
func startFaulty(t *testing.T, prefix, database, armed string, env ...string) *faulty {
	t.Helper()
	orch, err := faultyBinary()
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	p := &faulty{Client: &client.Client{BaseURL: "http://" + addr, AdminKey: adminKey}, log: &logBuffer{}, exited: make(chan struct{})}
	mount, token := mountOf(t, shared, prefix)
	p.cmd = exec.Command(orch, "server")
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), fault.Variable + "=" + armed, "ORCH_ADDR=" + addr, "ORCH_ADMIN_KEY=" + adminKey, "ORCH_DATABASE_URL=" + database,
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR=" + binDir, "ORCH_ENGINE_LOGS=driver",
		"ORCH_RESTART_BACKOFF_BASE_S=300", "ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=2", "ORCH_CONSUL_PREFIX=" + prefix, "ORCH_LOG_LEVEL=debug",
		"NOMAD_ADDR=" + shared.NomadAddr, "CONSUL_HTTP_ADDR=" + shared.ConsulAddr, "VAULT_ADDR=" + shared.VaultAddr, "VAULT_TOKEN=" + token, "ORCH_VAULT_MOUNT=" + mount,
	}, env...)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			t.Logf("log of a server with %q armed:\n%s", armed, tail(p.log.String(), 6000))
		}
	})
	eventually(t, "orch server is ready", func() error {
		if p.dead() {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return p.Ready(ctx)
	})
	return p
}

// end kills it, paused or not.
func (p *faulty) end() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

func (p *faulty) dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// awaitDeath waits until the armed point has ended the process.
func (p *faulty) awaitDeath(within time.Duration) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-timer.C:
		return fmt.Errorf("the process is alive after %s", within)
	case <-p.exited:
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		return fmt.Errorf("the process ended with %s", p.cmd.ProcessState)
	}
	return nil
}

// awaitPause waits until the armed point has paused the process.
func (p *faulty) awaitPause(t *testing.T) {
	t.Helper()
	eventually(t, "the process is paused", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
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

func (p *faulty) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// endSessions does what Consul does when a dead replica's TTL is over.
func (s *stores) endSessions(prefix string) {
	s.t.Helper()
	pairs, _, err := s.consul.KV().List(prefix+"replicas/", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, pair := range pairs {
		if _, err := s.consul.Session().Destroy(pair.Session, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}
