package devstack

import (
	"fmt"
	"strconv"
)

// The hosts of a Cluster: the last part of the address of the first host of each kind. A
// node's host runs a Nomad client and its Consul agent. A host of the caller runs a Consul
// agent and what Run starts there.
const (
	consulHosts = 11
	nomadHosts  = 21
	nodeHosts   = 31
	vaultHost   = 41
	ownHosts    = 51
)

// clusterServers is how many servers Consul has, how many Nomad has, and how many nodes
// there are.
const clusterServers = 3

// clusterRaft multiplies the Raft timeouts, so that a server on a busy machine does not look
// dead. An election then takes 3 to 6 s.
const clusterRaft = 3

// ConsulServer is a Consul server of a Cluster, 0 ≤ i ≤ 2. It has a host of its own.
func ConsulServer(i int) Component { return Component("consul-server-" + strconv.Itoa(i)) }

// NomadServerOf is a Nomad server of a Cluster, 0 ≤ i ≤ 2. It has a host of its own.
func NomadServerOf(i int) Component { return NomadServer + Component("-"+strconv.Itoa(i)) }

// place registers an agent that runs on a host.
func (c *Cluster) place(comp Component, host, bin string, args ...string) {
	a := c.add(comp, bin, args...)
	a.on = func(start func() error) error { return c.Network.On(host, start) }
	c.hostOf[comp] = host
	c.names[comp] = string(comp)
}

// configure creates the hosts and writes the agents' configuration files.
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

// addConsul creates a host and adds the Consul agent on it.
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

// addNomad adds a Nomad agent, and for a server also its host.
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
