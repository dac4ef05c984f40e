package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func isNomad(c Component) bool { return strings.HasPrefix(string(c), string(Nomad)) }

// or fills the empty paths from other.
func (b Binaries) or(other Binaries) Binaries {
	for _, pair := range []struct {
		mine *string
		her  string
	}{{&b.Nomad, other.Nomad}, {&b.Consul, other.Consul}, {&b.Vault, other.Vault}} {
		if *pair.mine == "" {
			*pair.mine = pair.her
		}
	}
	return b
}

// configure chooses the ports and writes the agents' configuration files.
func (s *Stack) configure() error {
	httpPort := func(c Component, fixed int) (int, error) {
		port := fixed
		if port == 0 {
			var err error
			if port, err = s.slot.port(); err != nil {
				return 0, err
			}
		}
		s.httpPorts[c] = port
		return port, nil
	}
	env := append(agentEnv(), markerEnv+"="+s.id.ID)
	if len(s.Dir) <= longestSocketDir {
		tmp := filepath.Join(s.Dir, "tmp")
		if err := os.Mkdir(tmp, 0o1777); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
		env = append(env, "TMPDIR="+tmp)
	}
	add := func(c Component, bin string, args ...string) {
		s.agents[c] = &agent{name: c, bin: bin, args: args, env: env, log: s.LogFile(c)}
	}

	port, err := httpPort(Vault, s.cfg.Ports.Vault)
	if err != nil {
		return err
	}
	s.VaultAddr = address(port)
	cluster, err := s.slot.port() // bound by Vault although nothing comes there
	if err != nil {
		return err
	}
	conf := s.path(Vault, ".hcl")
	if err := renderVault(conf, s.path(Vault, ""), port, cluster); err != nil {
		return err
	}
	add(Vault, s.cfg.Binaries.Vault, "server", "-config="+conf)

	var serverSerf, serverRPC int // of the Consul server and the Nomad server
	dynamic := s.slot.dynamicPorts(s.cfg.DynamicPorts, 1+s.cfg.ExtraClients)
	s.DynamicPorts = dynamic[0]
	addNomad := func(c Component, n nomadNode, fixed int) error {
		for _, port := range []*int{&n.RPC, &n.Serf} {
			if *port, err = s.slot.port(); err != nil {
				return err
			}
		}
		if n.Server {
			n.ServerRPC = n.RPC
		}
		if n.HTTP, err = httpPort(c, fixed); err != nil {
			return err
		}
		n.Name, n.Dir, n.ConsulUI, n.Vault = s.nodeName(c), s.path(c, ""), s.ConsulAddr, s.VaultAddr
		conf := s.path(c, ".hcl")
		add(c, s.cfg.Binaries.Nomad, "agent", "-config="+conf)
		serverRPC = n.ServerRPC
		return n.render(conf)
	}
	for i := range dynamic {
		consulName, fixed := Consul, s.cfg.Ports.Consul
		if i > 0 {
			consulName, fixed = ConsulClient(i), 0
		}
		n := consulNode{Name: s.nodeName(consulName), Dir: s.path(consulName, ""), Server: i == 0, Join: serverSerf}
		for _, port := range []*int{&n.RPC, &n.SerfLAN} {
			if *port, err = s.slot.port(); err != nil {
				return err
			}
		}
		if n.HTTP, err = httpPort(consulName, fixed); err != nil {
			return err
		}
		conf := s.path(consulName, ".json")
		if err := n.render(conf); err != nil {
			return err
		}
		add(consulName, s.cfg.Binaries.Consul, "agent", "-config-file="+conf)

		consulAddr := fmt.Sprintf("%s:%d", loopback, n.HTTP)
		if i == 0 {
			serverSerf, s.ConsulAddr = n.SerfLAN, address(n.HTTP)
			if err := addNomad(NomadServer, nomadNode{Server: true, Consul: consulAddr}, s.cfg.Ports.Nomad); err != nil {
				return err
			}
			s.NomadAddr = address(s.httpPorts[NomadServer])
		}
		err := addNomad(NomadClient(i), nomadNode{
			Consul: consulAddr, ServerRPC: serverRPC,
			Dynamic: dynamic[i], Cgroup: fmt.Sprintf("orch-%s-%d.slice", s.id.ID, i),
			MemoryMB: s.cfg.MemoryMB, CPUMHz: s.cfg.CPUMHz,
			Docker: s.cfg.DockerSocket, DockerDisableLogs: s.cfg.DockerDisableLogs, Catalog: s.cfg.CatalogDir,
		}, 0)
		if err != nil {
			return err
		}
	}
	return nil
}

// path is a file or folder of an agent below Dir.
func (s *Stack) path(c Component, ext string) string { return filepath.Join(s.Dir, string(c)+ext) }

// nodeName is the name of the node that an agent stands for.
func (s *Stack) nodeName(c Component) string {
	switch c {
	case NomadServer:
		return "orch-dev-server"
	case Consul, NomadClient(0):
		return "orch-dev"
	}
	return "orch-dev" + string(c[strings.LastIndexByte(string(c), '-'):]) // nomad-client-1: orch-dev-1
}

func address(port int) string { return fmt.Sprintf("http://%s:%d", loopback, port) }
