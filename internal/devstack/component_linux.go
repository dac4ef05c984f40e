package devstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Kill ends an agent with SIGKILL, like a crash, and returns when it has ended. Nomad's tasks
// keep running.
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

// Restart restarts an agent, after Kill or while it runs, with the same port and state. It
// returns when the agent is usable; it unseals Vault.
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

// Lose ends an agent of Nomad like Kill and deletes its state, as when its disk is replaced.
// Restart restarts it. The tasks of a client keep running, and their directories and the
// host volumes are kept.
func (s *Stack) Lose(c Component) error {
	if !isNomad(c) {
		return fmt.Errorf("%q is not an agent of Nomad", c)
	}
	if err := s.Kill(c); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.DataDir(c), nomadState(c)))
}

// Pause stops an agent with SIGSTOP: it keeps its connections and does not respond.
func (s *Stack) Pause(c Component) error { return s.signal(c, syscall.SIGSTOP) }

// Resume continues a paused agent.
func (s *Stack) Resume(c Component) error { return s.signal(c, syscall.SIGCONT) }

// Addr returns the address of an agent's API.
func (s *Stack) Addr(c Component) string { return s.urls[c] }

// LogFile returns the path of an agent's log; for Nomad that of the server. A restarted agent
// appends to it.
func (s *Stack) LogFile(c Component) string {
	if c == Nomad {
		c = NomadServer
	}
	return s.path(c, ".log")
}

// PID returns the process id of an agent; 0: it does not run. For Nomad it is the server's.
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

// parts returns the agents of a component, in the order in which they start.
func (s *Stack) parts(c Component) ([]*agent, error) {
	if c == Nomad {
		return []*agent{s.agents[NomadServer], s.agents[NomadClient(0)]}, nil
	}
	if a := s.agents[c]; a != nil {
		return []*agent{a}, nil
	}
	return nil, fmt.Errorf("this stack has no %q", c)
}
