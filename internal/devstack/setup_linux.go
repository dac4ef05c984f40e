package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func isNomad(c Component) bool       { return strings.HasPrefix(string(c), string(Nomad)) }
func isNomadServer(c Component) bool { return strings.HasPrefix(string(c), string(NomadServer)) }

// or returns the paths of b, and those of other in place of empty ones.
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
		s.urls[c], s.names[c] = s.url(loopback, port), nodeName(c)
		return port, nil
	}
	if err := s.prepareEnv(); err != nil {
		return err
	}

	port, err := httpPort(Vault, s.cfg.Ports.Vault)
	if err != nil {
		return err
	}
	s.VaultAddr = s.url(loopback, port)
	cluster, err := s.slot.port() // Vault listens on it although it has no peers
	if err != nil {
		return err
	}
	cert, err := s.lock.issue(Vault, loopback, "")
	if err != nil {
		return err
	}
	conf := s.path(Vault, ".hcl")
	if err := (vaultNode{Dir: s.DataDir(Vault), Bind: loopback, HTTP: port, Cluster: cluster, TLS: cert}).render(conf); err != nil {
		return err
	}
	s.add(Vault, s.cfg.Binaries.Vault, "server", "-config="+conf)

	var join []string // of the Consul server
	var server string // the Nomad server
	dynamic := s.slot.dynamicPorts(s.cfg.DynamicPorts, 1+s.cfg.ExtraClients)
	s.DynamicPorts = dynamic[0]
	addNomad := func(c Component, n nomadNode, fixed int) error {
		for _, port := range []*int{&n.RPC, &n.Serf} {
			if *port, err = s.slot.port(); err != nil {
				return err
			}
		}
		n.Bind, n.Interface, n.Expect, n.Raft = loopback, "lo", 1, 1
		if n.HTTP, err = httpPort(c, fixed); err != nil {
			return err
		}
		n.Name, n.Dir, n.ConsulUI, n.Vault = nodeName(c), s.path(c, ""), s.ConsulAddr, s.VaultAddr
		if n.Server {
			n.Dir = s.DataDir(c)
			server = fmt.Sprintf("%s:%d", loopback, n.RPC)
		} else {
			n.Servers, n.State = []string{server}, filepath.Join(s.DataDir(c), nomadState(c))
		}
		if err := n.secure(s.lock, c, loopback); err != nil {
			return err
		}
		conf := s.path(c, ".hcl")
		s.add(c, s.cfg.Binaries.Nomad, "agent", "-config="+conf)
		return n.render(conf)
	}
	for i := range dynamic {
		consulName, fixed := Consul, s.cfg.Ports.Consul
		if i > 0 {
			consulName, fixed = ConsulClient(i), 0
		}
		n := consulNode{
			Name: nodeName(consulName), Dir: s.DataDir(consulName), Bind: loopback, Client: loopback,
			Server: i == 0, Expect: 1, Raft: 1, Join: join,
		}
		for _, port := range []*int{&n.RPC, &n.SerfLAN, &n.GRPC} {
			if *port, err = s.slot.port(); err != nil {
				return err
			}
		}
		if n.HTTP, err = httpPort(consulName, fixed); err != nil {
			return err
		}
		if err := n.secure(s.lock, consulName, loopback); err != nil {
			return err
		}
		conf := s.path(consulName, ".json")
		if err := n.render(conf); err != nil {
			return err
		}
		s.add(consulName, s.cfg.Binaries.Consul, "agent", "-config-file="+conf)

		consulAddr := fmt.Sprintf("%s:%d", loopback, n.HTTP)
		if i == 0 {
			join, s.ConsulAddr = []string{fmt.Sprintf("%s:%d", loopback, n.SerfLAN)}, s.url(loopback, n.HTTP)
			if err := addNomad(NomadServer, nomadNode{Server: true, Consul: consulAddr}, s.cfg.Ports.Nomad); err != nil {
				return err
			}
			s.NomadAddr = s.urls[NomadServer]
		}
		plugins := ""
		if i == 0 {
			plugins = s.cfg.VolumePlugins
		}
		err := addNomad(NomadClient(i), nomadNode{
			Consul:  consulAddr,
			Dynamic: dynamic[i], Cgroup: fmt.Sprintf("orch-%s-%d.slice", s.id.ID, i),
			MemoryMB: s.cfg.MemoryMB, CPUMHz: s.cfg.CPUMHz,
			Docker: s.cfg.DockerSocket, DockerDisableLogs: s.cfg.DockerDisableLogs, Catalog: s.cfg.CatalogDir, VolumePlugins: plugins,
		}, 0)
		if err != nil {
			return err
		}
	}
	return nil
}

// prepareEnv creates the environment of the agents, and their directory for temporary files.
func (s *Stack) prepareEnv() error {
	s.env = append(agentEnv(), markerEnv+"="+s.id.ID)
	if len(s.Dir) <= longestSocketDir {
		tmp := filepath.Join(s.Dir, "tmp")
		if err := os.Mkdir(tmp, 0o1777); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
		s.env = append(s.env, "TMPDIR="+tmp)
	}
	return nil
}

// add registers an agent, which is started later.
func (s *Stack) add(c Component, bin string, args ...string) *agent {
	a := &agent{name: c, bin: bin, args: args, env: s.env, log: s.LogFile(c)}
	s.agents[c] = a
	return a
}

// path returns the path of an agent's file or directory below Dir.
func (s *Stack) path(c Component, ext string) string { return filepath.Join(s.Dir, string(c)+ext) }

// nodeName returns the name of an agent's node.
func nodeName(c Component) string {
	switch c {
	case NomadServer:
		return "orch-dev-server"
	case Consul, NomadClient(0), Vault:
		return "orch-dev"
	}
	return "orch-dev" + string(c[strings.LastIndexByte(string(c), '-'):]) // nomad-client-1: orch-dev-1
}

// url returns the address of an agent's API.
func (s *Stack) url(host string, port int) string {
	scheme := "http"
	if s.lock != nil {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, host, port)
}
