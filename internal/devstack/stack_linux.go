package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
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
	if err := errors.Join(s.enableVaultLogin(ctx), s.enableConsulLogin(ctx)); err != nil {
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
