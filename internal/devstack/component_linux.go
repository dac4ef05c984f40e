package devstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Kill ends an agent with SIGKILL, as a crash would, and returns when it is gone.
// Nomad's tasks go on running.
func (s *Stack) Kill(c Component) error {
	agents, err := s.parts(c)
	if err != nil {
		return err
	}
	for _, a := range agents {
		_, done := a.running()
		if err := a.signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-done
	}
	return nil
}

// Restart starts an agent again on its port and its state, after Kill or while it
// runs, and returns when it is usable again; Vault is unsealed.
func (s *Stack) Restart(ctx context.Context, c Component) error {
	agents, err := s.parts(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, a := range agents {
		a.stop(stopGrace)
	}
	for _, a := range agents {
		switch {
		case a.name == Vault:
			err = s.startVault(ctx)
		case isNomad(a.name):
			err = s.startNomad(ctx, a.name)
		default:
			err = s.startConsul(ctx, a.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Lose ends an agent of Nomad as Kill does and removes the state that it keeps, as
// when its disk is replaced. Restart starts it. A client's host volumes and the
// directories of its tasks stay, and its tasks go on running.
func (s *Stack) Lose(c Component) error {
	if !isNomad(c) {
		return fmt.Errorf("%q is no agent of Nomad", c)
	}
	if err := s.Kill(c); err != nil {
		return err
	}
	state := "client"
	if isNomadServer(c) {
		state = "server"
	}
	return os.RemoveAll(filepath.Join(s.path(c, ""), state))
}

// Pause stops an agent with SIGSTOP: it keeps its connections and answers nothing.
func (s *Stack) Pause(c Component) error { return s.signal(c, syscall.SIGSTOP) }

// Resume lets a paused agent go on.
func (s *Stack) Resume(c Component) error { return s.signal(c, syscall.SIGCONT) }

// Addr is the address of an agent's API.
func (s *Stack) Addr(c Component) string { return s.urls[c] }

// LogFile is where an agent writes its log, for Nomad the server; it grows over
// restarts.
func (s *Stack) LogFile(c Component) string {
	if c == Nomad {
		c = NomadServer
	}
	return s.path(c, ".log")
}

// PID is an agent's process; 0: it does not run. For Nomad it is the server's.
func (s *Stack) PID(c Component) int {
	if c == Nomad {
		c = NomadServer
	}
	if a := s.agents[c]; a != nil {
		if p, _ := a.running(); p != nil {
			return p.Pid
		}
	}
	return 0
}

func (s *Stack) signal(c Component, sig syscall.Signal) error {
	agents, err := s.parts(c)
	if err != nil {
		return err
	}
	for _, a := range agents {
		if err := a.signal(sig); err != nil {
			return err
		}
	}
	return nil
}

// parts are the processes of a component, in the order they start.
func (s *Stack) parts(c Component) ([]*agent, error) {
	if c == Nomad {
		return []*agent{s.agents[NomadServer], s.agents[NomadClient(0)]}, nil
	}
	if a := s.agents[c]; a != nil {
		return []*agent{a}, nil
	}
	return nil, fmt.Errorf("this stack has no %q", c)
}
