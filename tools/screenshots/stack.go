package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
)

// stack is a development stack of orch-dev with open agents, on free ports.
type stack struct {
	dir, nomad string
	process    *exec.Cmd
	client     *client.Client
	cluster    *nomad.Client
}

// startStack starts a stack in a new directory, and waits until it serves.
func startStack(ctx context.Context, dev string) (*stack, error) {
	dev, err := filepath.Abs(dev)
	if err != nil {
		return nil, err
	}
	s := new(stack)
	if s.dir, err = os.MkdirTemp("", "orch-screenshots-"); err != nil {
		return nil, err
	}
	s.process = exec.Command(dev, "dev", "-open")
	s.process.Dir, s.process.Stderr = s.dir, os.Stderr
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which ends it
	s.process.Env = append(os.Environ(), "ORCH_ADDR=127.0.0.1:0", "ORCH_OPS_ADDR=off", "ORCH_RESTART_MAX_ATTEMPTS=0",
		"ORCH_DEV_NOMAD_PORT=0", "ORCH_DEV_CONSUL_PORT=0", "ORCH_DEV_VAULT_PORT=0", "ORCH_CONSUL_UI_URL=https://consul.example.com/ui/dc1")
	if err := s.process.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	for ctx.Err() == nil {
		if err = s.connect(ctx); err == nil {
			return s, nil
		}
		time.Sleep(500 * time.Millisecond)
	}
	return nil, errors.Join(err, s.stop())
}

// connect reads the addresses and keys of the stack.
func (s *stack) connect(ctx context.Context) error {
	f, err := os.Open(filepath.Join(s.dir, ".dev", "env"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	env := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		env[name] = value
	}
	s.nomad = env["NOMAD_ADDR"]
	s.client = &client.Client{BaseURL: env["ORCH_URL"], PlatformKey: env["ORCH_PLATFORM_KEY"]}
	if s.cluster, err = nomad.NewClient(&nomad.Config{Address: s.nomad}); err != nil {
		return err
	}
	if _, err := s.client.Engine(ctx, "demo-user-001"); err != nil {
		return fmt.Errorf("the stack does not serve: %w", err)
	}
	return nil
}

// stop ends the stack, which leaves nothing behind.
func (s *stack) stop() error {
	err := s.process.Process.Signal(syscall.SIGINT)
	_ = s.process.Wait() // 130
	return errors.Join(err, os.RemoveAll(s.dir))
}

// showsFailure reports whether Nomad does not restart an engine's process any more, and its
// job says that the engine is failed.
func (s *stack) showsFailure(engineID string) bool {
	allocs, _, err := s.cluster.Jobs().Allocations("engine-"+engineID, false, nil)
	if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != nomad.AllocClientStatusFailed {
		return false
	}
	job, _, err := s.cluster.Jobs().Info("engine-"+engineID, nil)
	return err == nil && job.UI != nil && strings.Contains(job.UI.Description, string(client.Failed))
}
