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
	// startTimeout limits Start and Restart. They usually need 3 s, but many times that on a
	// machine that is busy with a compilation.
	startTimeout = 90 * time.Second
	// stopGrace is the time between SIGTERM and SIGKILL. The state of a stack is not needed
	// after Stop, so this only keeps the logs free of errors.
	stopGrace = 2 * time.Second
	// longestSocketDir is the maximum length of Dir, in bytes, with which go-plugin's Unix
	// sockets in Dir/tmp have a valid path (107 bytes).
	longestSocketDir = 80
)

// Stack is a running set of agents.
type Stack struct {
	NomadAddr, ConsulAddr, VaultAddr string // http://127.0.0.1:port; https on a locked stack
	Namespace                        string // of engines, in Nomad
	VaultRootToken                   string
	VaultOrchToken                   string // has only the service's policy
	Dir                              string
	// DynamicPorts is the range of the first node's tasks.
	DynamicPorts [2]int

	cfg       Config
	id        identity
	log       hclog.Logger
	state     *stateDir
	slot      *slot
	reaper    *reaper
	lock      *lock // nil: the stack is open, and the agents accept every caller
	agents    map[Component]*agent
	urls      map[Component]string // of the agents' APIs
	names     map[Component]string // of the agents' nodes
	unsealKey string
	mounting  sync.Mutex
	mounts    map[string]string // the service's tokens, by KV mount in Vault
	workloads string            // the policy of engines for all mounts
	env       []string          // of every agent

	stopOnce sync.Once
	stopErr  error
}

// Start starts the agents and returns when all of them are usable: Consul writes,
// Nomad's nodes are ready with healthy drivers, Vault is unsealed and prepared.
// It takes about 3 s; ctx bounds the start only, not the life of the stack.
//
// A failed start leaves nothing behind. The error is a *PortTakenError if a port is in use.
// Otherwise it says what is wrong and what to do: the directory was not created by a stack
// or belongs to a running one, a binary or the docker engine is missing, or an agent ended
// (with the end of its log).
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

// prepare acquires what a stack owns (directory, ports, reaper), and configures its agents.
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
	if cfg.InMemory {
		s.id.Memory = memoryDir(name)
	}
	if err = s.state.write(s.id); err != nil {
		return nil, err
	}
	if s.reaper, err = startReaper(s.id, s.slot.holder); err != nil {
		return nil, err
	}
	if s.id.Memory != "" { // only now, because the reaper would remove it
		if err = os.Mkdir(s.id.Memory, 0o700); err != nil {
			return s, fmt.Errorf("databases in memory: %w", err)
		}
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

// startAtOnce is how many nodes start concurrently. If all nodes of a large stack did, they
// and Vault would compete for the cores until a start times out.
const startAtOnce = 8

// bringUp starts the agents in the order in which they depend on each other: a Nomad client
// detects Consul and Vault when it starts, and otherwise only every 15 s or more.
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

// Stop ends the stack and removes everything that it created, within 10 s. The error names
// what could not be removed. A second call returns the same error.
func (s *Stack) Stop() error {
	s.stopOnce.Do(func() { s.stopErr = s.stop() })
	return s.stopErr
}

func (s *Stack) stop() error {
	var wg sync.WaitGroup
	err := s.state.removeKeyFile(s.id)
	// Nomad ends first, because a running client would restart tasks that end.
	for name, a := range s.agents {
		if isNomad(name) {
			wg.Go(func() { a.stop(stopGrace) })
		}
	}
	wg.Wait()
	err = errors.Join(err, cleanUp(s.id)) // ends the tasks and the other agents
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
