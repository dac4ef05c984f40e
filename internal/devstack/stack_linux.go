package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

const (
	// startTimeout bounds Start and Restart when the caller's context does not; a
	// machine that is busy compiling needs many times the usual 3 s.
	startTimeout = 90 * time.Second
	// stopGrace is how long an agent may take to end by itself. Nothing of a
	// stack's state is needed after Stop, so this is for tidy logs only.
	stopGrace = 2 * time.Second
	// longestSocketDir is the longest Dir that leaves room for go-plugin's Unix
	// sockets (107 bytes) in Dir/tmp.
	longestSocketDir = 80
)

// Stack is a running set of agents.
type Stack struct {
	NomadAddr, ConsulAddr, VaultAddr string // http://127.0.0.1:port, or https where it is locked
	Namespace                        string // of engines, in Nomad
	VaultRootToken                   string
	VaultOrchToken                   string // may do what the service may do, no more
	Dir                              string
	// DynamicPorts is the range of the first node's tasks.
	DynamicPorts [2]int

	cfg       Config
	id        identity
	log       hclog.Logger
	state     *stateDir
	slot      *slot
	reaper    *reaper
	lock      *lock // nil: the agents let everybody in
	agents    map[Component]*agent
	urls      map[Component]string // of the agents' APIs
	names     map[Component]string // of the nodes that the agents stand for
	unsealKey string
	mounting  sync.Mutex
	mounts    map[string]string // tokens of the service, by KV mount in Vault
	workloads string            // the policy of engines, of all mounts
	env       []string          // of every agent

	stopOnce sync.Once
	stopErr  error
}

// Start starts the agents and returns when all of them are usable: Consul writes,
// Nomad's nodes are ready with healthy drivers, Vault is unsealed and prepared.
// It takes about 3 s; ctx bounds the start only, not the life of the stack.
//
// A failed start leaves nothing behind. The error is a *PortTakenError for a
// taken port, and otherwise says what is wrong and what to do: the directory belongs
// to somebody else or to a running stack, a binary or the docker engine is
// missing, an agent ended (with the end of its log).
func Start(ctx context.Context, cfg Config) (*Stack, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("devstack configuration: %w", err)
	}
	if err := cfg.absolute(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if !cfg.Binaries.complete() {
		found, err := Tools(ctx, ToolOptions{Progress: cfg.Progress})
		if err != nil {
			return nil, err
		}
		cfg.Binaries = cfg.Binaries.or(found)
	}
	for _, taken := range []PortTakenError{{Nomad, cfg.Ports.Nomad}, {Consul, cfg.Ports.Consul}, {Vault, cfg.Ports.Vault}} {
		if taken.Port != 0 && !portFree(taken.Port) {
			return nil, &taken
		}
	}
	if err := dockerListens(ctx, cfg.DockerSocket); err != nil {
		return nil, err
	}
	s, err := prepare(ctx, cfg, (*Stack).configure)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.bringUp(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// prepare takes what a stack owns, directory, ports, reaper, and configures its agents.
func prepare(ctx context.Context, cfg Config, configure func(*Stack) error) (_ *Stack, err error) {
	if cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "orch-dev-"); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	s := &Stack{cfg: cfg, Dir: cfg.Dir, log: cfg.Logger.Named("devstack"), agents: map[Component]*agent{}, urls: map[Component]string{}, names: map[Component]string{}}
	if s.state, err = openState(ctx, cfg.Dir); err != nil {
		return nil, err
	}
	key := make([]byte, 6)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%x", key)
	s.id = identity{
		ID: name, Dir: cfg.Dir, PID: os.Getpid(), Cgroups: "orch-" + name + "*.slice",
		DockerSocket: cfg.DockerSocket, Keep: cfg.Keep, KeyFile: cfg.KeyFile,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.slot, err = takeSlot(); err != nil {
		return nil, err
	}
	if err = s.state.write(s.id); err != nil {
		return nil, err
	}
	if s.reaper, err = startReaper(s.id, s.slot.holder); err != nil {
		return nil, err
	}
	s.Namespace = "default"
	if cfg.Locked {
		s.Namespace = enginesNamespace
		if s.lock, err = newLock(s.Dir); err != nil {
			return s, err
		}
	}
	return s, configure(s)
}

// startAtOnce is how many nodes start at the same time: all of a large stack would
// take the cores from each other, and from Vault, until somebody's time is over.
const startAtOnce = 8

// bringUp starts the agents in the order they need one another: a Nomad client
// looks for Consul and Vault when it starts, and then only every 15 s or more.
func (s *Stack) bringUp(ctx context.Context) error {
	began := time.Now()
	step := func(what string) {
		s.cfg.Progress(fmt.Sprintf("%s (%.1f s)", what, time.Since(began).Seconds()))
	}
	first, firstCtx := errgroup.WithContext(ctx)
	first.Go(func() error { return s.startConsul(firstCtx, Consul) })
	first.Go(func() error { return s.startVault(firstCtx) })
	first.Go(func() error { return s.startNomad(firstCtx, NomadServer) })
	if err := first.Wait(); err != nil {
		return err
	}
	if err := s.prepareConsul(ctx, Consul); err != nil {
		return err
	}
	step("Consul " + s.ConsulAddr + ", Vault " + s.VaultAddr + " and the Nomad server " + s.NomadAddr + " are up")
	rest, restCtx := errgroup.WithContext(ctx)
	rest.SetLimit(startAtOnce)
	rest.Go(func() error { return s.prepareVault(restCtx) })
	for i := range 1 + s.cfg.ExtraClients {
		rest.Go(func() error {
			if i > 0 {
				if err := s.startConsul(restCtx, ConsulClient(i)); err != nil {
					return err
				}
			}
			return s.startNomad(restCtx, NomadClient(i))
		})
	}
	if err := rest.Wait(); err != nil {
		return err
	}
	if err := errors.Join(s.letEnginesIn(ctx), s.letEnginesIntoConsul(ctx)); err != nil {
		return err
	}
	step("nodes are ready")
	return nil
}

// Stop ends the stack and removes all that it made; it takes at most 10 s. The
// second call returns what the first one did. A Stack that failed to stop says
// what is left.
func (s *Stack) Stop() error {
	s.stopOnce.Do(func() { s.stopErr = s.stop() })
	return s.stopErr
}

func (s *Stack) stop() error {
	var wg sync.WaitGroup
	err := s.state.removeKeyFile(s.id)
	// Nomad first: a client that lives would start ended tasks again.
	for name, a := range s.agents {
		if isNomad(name) {
			wg.Go(func() { a.stop(stopGrace) })
		}
	}
	wg.Wait()
	err = errors.Join(err, cleanUp(s.id)) // tasks, and the other agents by the way
	for _, a := range s.agents {
		a.stop(0)
	}
	if !s.cfg.Keep && err == nil {
		err = s.state.remove()
	}
	if s.reaper != nil {
		s.reaper.dismiss()
	}
	s.state.close()
	if s.slot != nil {
		s.slot.release()
	}
	if err != nil {
		return fmt.Errorf("stopping the stack in %s: %w", s.Dir, err)
	}
	return nil
}

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
