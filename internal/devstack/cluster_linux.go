package devstack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

// Cluster consists of three Consul servers, three Nomad servers, three nodes and Vault, each
// on its own host in a private network.
type Cluster struct {
	*Stack
	Network *Network
	// ConsulAddrs and NomadAddrs are the addresses of the servers' APIs.
	ConsulAddrs, NomadAddrs []string
	// Hosts are the names of the caller's hosts.
	Hosts []string

	hostOf map[Component]string
}

// StartCluster starts a cluster and returns when all of it is usable. It ignores the settings
// of cfg for ports, docker and extra clients. own names further hosts, each with a Consul
// agent at 127.0.0.1:8500. The process must have been started by Isolated. Stop removes the
// cluster.
func StartCluster(ctx context.Context, cfg Config, own ...string) (*Cluster, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if err := cfg.absolute(); err != nil {
		return nil, err
	}
	if !cfg.Binaries.complete() {
		found, err := Tools(ctx, ToolOptions{Progress: cfg.Progress})
		if err != nil {
			return nil, err
		}
		cfg.Binaries = cfg.Binaries.or(found)
	}
	network, err := NewNetwork()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Network: network, Hosts: own, hostOf: map[Component]string{}}
	if c.Stack, err = prepare(ctx, cfg, c.configure); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, 2*startTimeout)
	defer cancel()
	if err := c.bringUp(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// Stop ends the cluster and removes everything that it created.
func (c *Cluster) Stop() error { return errors.Join(c.Stack.Stop(), c.Network.Close()) }

// bringUp starts the agents in the order in which they depend on each other.
func (c *Cluster) bringUp(ctx context.Context) error {
	began := time.Now()
	step := func(what string) { c.cfg.Progress(fmt.Sprintf("%s (%.1f s)", what, time.Since(began).Seconds())) }
	first, firstCtx := errgroup.WithContext(ctx)
	for i := range clusterServers {
		first.Go(func() error { return c.startConsul(firstCtx, ConsulServer(i)) })
		first.Go(func() error { return c.startNomad(firstCtx, NomadServerOf(i)) })
	}
	first.Go(func() error { return c.startVault(firstCtx) })
	if err := first.Wait(); err != nil {
		return err
	}
	if err := c.prepareConsul(ctx, ConsulServer(0), ConsulServer(1), ConsulServer(2)); err != nil {
		return err
	}
	step("the servers of Consul and Nomad, and Vault, are up")
	rest, restCtx := errgroup.WithContext(ctx)
	rest.Go(func() error { return c.prepareVault(restCtx) })
	for i := range clusterServers + len(c.Hosts) {
		rest.Go(func() error {
			if err := c.startConsul(restCtx, ConsulClient(i)); err != nil || i >= clusterServers {
				return err
			}
			return c.startNomad(restCtx, NomadClient(i))
		})
	}
	if err := rest.Wait(); err != nil {
		return err
	}
	if err := errors.Join(c.enableVaultLogin(ctx), c.enableConsulLogin(ctx)); err != nil {
		return err
	}
	step("nodes are ready")
	return nil
}

// Run starts a program of the caller on a host, as a component for Kill, Pause and Again.
// Its environment is that of the agents, and env.
func (c *Cluster) Run(comp Component, host, bin string, args, env []string) error {
	c.place(comp, host, bin, args...)
	a := c.agents[comp]
	a.env = append(append([]string{}, a.env...), env...)
	return a.start()
}

// Again restarts a component that was killed. It does not wait until the component is
// usable, except for Vault, which it unseals.
func (c *Cluster) Again(ctx context.Context, comp Component) error {
	a := c.agents[comp]
	if p, _ := a.running(); p != nil {
		return fmt.Errorf("%s runs already", comp)
	}
	if comp == Vault {
		return c.startVault(ctx)
	}
	return a.start()
}

// Runs reports whether a component's process runs.
func (c *Cluster) Runs(comp Component) bool {
	p, _ := c.agents[comp].running()
	return p != nil
}

// HostOf returns the host of a component.
func (c *Cluster) HostOf(comp Component) string { return c.hostOf[comp] }

// Await waits until every agent runs and is usable, as after StartCluster.
func (c *Cluster) Await(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	for comp, a := range c.agents {
		switch {
		case comp == Vault:
			all.Go(func() error { return c.awaitVault(ctx) })
		case isNomad(comp):
			all.Go(func() error { return c.awaitNomad(ctx, comp) })
		case strings.HasPrefix(string(comp), string(Consul)):
			all.Go(func() error { return c.awaitConsul(ctx, comp) })
		default:
			all.Go(a.exited)
		}
	}
	return all.Wait()
}

// KillHost kills every process on a host, including tasks, as a power failure does. The
// components on it must have been killed before.
func (c *Cluster) KillHost(host string) error {
	h := c.Network.hosts[host]
	var errs []error
	for {
		left := 0
		for _, p := range stackProcesses(c.id) {
			if h.has(p.Pid) {
				left++
				errs = append(errs, p.Kill())
			}
			_ = p.Release()
		}
		if left == 0 {
			return nil
		}
		if len(errs) > 1000 {
			return fmt.Errorf("processes on %s do not end: %w", host, errors.Join(errs[len(errs)-left:]...))
		}
		time.Sleep(procPoll)
	}
}
