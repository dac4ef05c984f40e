package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
)

// The hosts of a Cluster. On a node's host run a Nomad client and its Consul
// agent, on an own host a Consul agent and what Run puts there.
const (
	consulHosts = 11 // last part of the address of the first Consul server, and so on
	nomadHosts  = 21
	nodeHosts   = 31
	vaultHost   = 41
	ownHosts    = 51
)

// clusterServers is how many servers Consul and Nomad have, and how many nodes
// there are.
const clusterServers = 3

// clusterRaft multiplies the Raft timeouts: a machine that is busy must not look
// like a server that is gone. Another leader takes 3 to 6 s.
const clusterRaft = 3

// ConsulServer is a Consul server of a Cluster, 0 ≤ i ≤ 2. On its host is
// nothing else.
func ConsulServer(i int) Component { return Component("consul-server-" + strconv.Itoa(i)) }

// NomadServerOf is a Nomad server of a Cluster, 0 ≤ i ≤ 2. On its host is
// nothing else.
func NomadServerOf(i int) Component { return NomadServer + Component("-"+strconv.Itoa(i)) }

// Cluster is three Consul servers, three Nomad servers, three nodes and Vault,
// each on a host of its own in a private network.
type Cluster struct {
	*Stack
	Network *Network
	// ConsulAddrs and NomadAddrs are the APIs of the servers.
	ConsulAddrs, NomadAddrs []string
	// Hosts are the hosts of the caller's own.
	Hosts []string

	hostOf map[Component]string
}

// StartCluster starts a cluster and returns when all of it is usable. Of cfg
// counts what is not about ports, docker and extra clients. own names further
// hosts, each with a Consul agent of its own at 127.0.0.1:8500. The process must
// be one that Isolated started. Stop removes all of it.
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

// Stop ends the cluster and removes all that it made.
func (c *Cluster) Stop() error { return errors.Join(c.Stack.Stop(), c.Network.Close()) }

// place makes an agent known that runs on a host.
func (c *Cluster) place(comp Component, host, bin string, args ...string) {
	a := c.add(comp, bin, args...)
	a.on = func(start func() error) error { return c.Network.On(host, start) }
	c.hostOf[comp] = host
	c.names[comp] = string(comp)
}

// configure makes the hosts and writes the agents' configuration files.
func (c *Cluster) configure(s *Stack) error {
	c.Stack = s
	if err := s.prepareEnv(); err != nil {
		return err
	}
	addr, err := c.Network.AddHost(string(Vault), vaultHost)
	if err != nil {
		return err
	}
	s.VaultAddr = s.url(addr, 8200)
	s.urls[Vault] = s.VaultAddr
	cert, err := s.lock.issue(Vault, addr, "")
	if err != nil {
		return err
	}
	if err := (vaultNode{Dir: s.path(Vault, ""), Bind: addr, HTTP: 8200, Cluster: 8201, TLS: cert}).render(s.path(Vault, ".hcl")); err != nil {
		return err
	}
	c.place(Vault, string(Vault), s.cfg.Binaries.Vault, "server", "-config="+s.path(Vault, ".hcl"))

	var lan, serf, rpc []string
	for i := range clusterServers {
		lan = append(lan, fmt.Sprint(subnet, consulHosts+i, ":8301"))
		serf = append(serf, fmt.Sprint(subnet, nomadHosts+i, ":4648"))
		rpc = append(rpc, fmt.Sprint(subnet, nomadHosts+i, ":4647"))
	}
	for i := range clusterServers {
		if err := c.addConsul(ConsulServer(i), string(ConsulServer(i)), consulHosts+i, true, lan); err != nil {
			return err
		}
		server := NomadServerOf(i)
		if err := c.addNomad(server, string(server), nomadHosts+i, nomadNode{Server: true, Join: serf, Consul: "127.0.0.1:8500", StockLimits: true}); err != nil {
			return err
		}
		c.ConsulAddrs, c.NomadAddrs = append(c.ConsulAddrs, s.urls[ConsulServer(i)]), append(c.NomadAddrs, s.urls[server])
	}
	s.ConsulAddr, s.NomadAddr = c.ConsulAddrs[0], c.NomadAddrs[0]
	for i := range clusterServers {
		host := string(NomadClient(i))
		if err := c.addConsul(ConsulClient(i), host, nodeHosts+i, false, lan); err != nil {
			return err
		}
		err := c.addNomad(NomadClient(i), host, nodeHosts+i, nomadNode{
			Servers: rpc, Consul: "127.0.0.1:8500", Dynamic: [2]int{20000, 20999}, Cgroup: fmt.Sprintf("orch-%s-%d.slice", s.id.ID, i),
			MemoryMB: s.cfg.MemoryMB, CPUMHz: s.cfg.CPUMHz, Catalog: s.cfg.CatalogDir, StockLimits: true,
		})
		if err != nil {
			return err
		}
	}
	for i, host := range c.Hosts {
		if err := c.addConsul(ConsulClient(clusterServers+i), host, ownHosts+i, false, lan); err != nil {
			return err
		}
	}
	return nil
}

// addConsul adds a Consul agent and the host that it is on.
func (c *Cluster) addConsul(comp Component, host string, number int, server bool, lan []string) error {
	addr, err := c.Network.AddHost(host, number)
	if err != nil {
		return err
	}
	n := consulNode{
		Name: string(comp), Dir: c.path(comp, ""), Bind: addr, Client: loopback + " " + addr, Server: server,
		HTTP: 8500, GRPC: 8503, RPC: 8300, SerfLAN: 8301, Expect: clusterServers, Raft: clusterRaft, Join: lan,
		StockLimits: true,
	}
	if err := n.secure(c.lock, comp, addr); err != nil {
		return err
	}
	c.urls[comp] = c.url(addr, 8500)
	c.place(comp, host, c.cfg.Binaries.Consul, "agent", "-config-file="+c.path(comp, ".json"))
	return n.render(c.path(comp, ".json"))
}

// addNomad adds a Nomad agent, and its host where there is none yet.
func (c *Cluster) addNomad(comp Component, host string, number int, n nomadNode) error {
	addr := fmt.Sprint(subnet, number)
	if n.Server {
		if _, err := c.Network.AddHost(host, number); err != nil {
			return err
		}
	}
	n.Name, n.Dir, n.Bind, n.Interface = string(comp), c.path(comp, ""), addr, hostLink
	n.HTTP, n.RPC, n.Serf, n.Expect, n.Raft = 4646, 4647, 4648, clusterServers, clusterRaft
	n.Vault, n.ConsulUI = c.VaultAddr, c.ConsulAddr
	if err := n.secure(c.lock, comp, addr); err != nil {
		return err
	}
	c.urls[comp] = c.url(addr, 4646)
	c.place(comp, host, c.cfg.Binaries.Nomad, "agent", "-config="+c.path(comp, ".hcl"))
	return n.render(c.path(comp, ".hcl"))
}

// bringUp starts the agents in the order they need one another.
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
	if err := errors.Join(c.letEnginesIn(ctx), c.letEnginesIntoConsul(ctx)); err != nil {
		return err
	}
	step("nodes are ready")
	return nil
}

// Run starts a program of the caller's on a host, as a component that Kill, Pause
// and Again know. Its environment is the agents' and env.
func (c *Cluster) Run(comp Component, host, bin string, args, env []string) error {
	c.place(comp, host, bin, args...)
	a := c.agents[comp]
	a.env = append(append([]string{}, a.env...), env...)
	return a.start()
}

// Again starts a component that was killed, and does not wait until it is
// usable; but Vault is unsealed.
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

// Runs says whether a component's process lives.
func (c *Cluster) Runs(comp Component) bool {
	p, _ := c.agents[comp].running()
	return p != nil
}

// HostOf is the host that a component runs on.
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

// KillHost ends every process on a host, tasks included, as a power cut does.
// The components on it are to be killed first.
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

// Task is a process that a node runs for an allocation: an engine, not the shell that
// becomes one when it has the lock of the brain.
type Task struct {
	PID            int
	JobID, AllocID string
}

// Executor is the process id of Nomad's executor that started the task, 0 when it has
// none or is gone.
func (t Task) Executor() int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.PID))
	if err != nil {
		return 0
	}
	var state string
	var parent int
	after := stat[bytes.LastIndexByte(stat, ')')+1:] // the name may hold anything
	if _, err := fmt.Sscan(string(after), &state, &parent); err != nil || !nomadHelper(parent) {
		return 0
	}
	return parent
}

// Tasks are the processes of all allocations, on all nodes; without the helpers
// that Nomad runs beside them.
func (s *Stack) Tasks() []Task {
	var tasks []Task
	for _, p := range stackProcesses(s.id) {
		t := Task{PID: p.Pid}
		for name, value := range environOf(p.Pid) {
			switch name {
			case "NOMAD_JOB_ID":
				t.JobID = value
			case "NOMAD_ALLOC_ID":
				t.AllocID = value
			}
		}
		if t.AllocID != "" && !p.helper && !launcher(p.Pid) {
			tasks = append(tasks, t)
		}
		_ = p.Release()
	}
	return tasks
}
