// Package devstack starts real Nomad, Consul and Vault agents on loopback, for
// `orch-dev dev` and for the tests. It leaves no process, mount, container, cgroup or
// temporary directory behind, even if the parent is killed. Several stacks can run at the
// same time. It works on Linux only, as root or as an ordinary user.
package devstack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// Config is the configuration of a stack. The zero value is a stack with one node, without
// docker, on free ports, in a temporary directory.
type Config struct {
	// Dir contains all state and logs. Start deletes its content if an earlier stack
	// created it, and otherwise fails unless it is empty. Stop removes it unless Keep is set. Empty: a new temporary
	// directory. Its path must be short, because Nomad creates Unix sockets below it, whose
	// path has at most 107 bytes.
	Dir string
	// Keep makes Stop keep Dir with the logs.
	Keep bool
	// InMemory keeps the databases of the agents in memory (/dev/shm) instead of Dir if there
	// is room, because their commits to a disk take much of the time of a test. A crash of an
	// agent loses nothing of them; Stop removes them, even if Keep is set. StartCluster does
	// not support it.
	InMemory bool
	// KeyFile is a file in Dir into which the caller writes addresses and keys. It is
	// deleted when the stack ends in any way, even if Keep is set. Empty: there is none.
	KeyFile string

	// Locked makes the agents refuse unknown callers, as in production: ACLs deny by
	// default, TLS uses a certificate authority of this stack, engines are in the Nomad
	// namespace "engines", and the service has tokens with only the policies in deploy/.
	Locked bool

	Ports    Ports             // zero fields: a free loopback port
	Logger   hclog.Logger      // nil: nothing is logged
	Progress func(line string) // gets a line per step for a human; may be nil

	// DynamicPorts is the range {min, max} of ports for tasks, divided evenly among the
	// nodes. Zero: DefaultDynamicPorts ports that no other stack on this machine uses.
	// {0, n}: only n of these per node, so that a test can exhaust them.
	DynamicPorts [2]int
	// MemoryMB and CPUMHz replace the totals of every node, so that a test can exhaust
	// them. Zero: what the machine has.
	MemoryMB, CPUMHz int

	// DockerSocket ("unix:///...") enables Nomad's docker driver. Empty: it is disabled.
	DockerSocket string
	// DockerDisableLogs sets the driver's disable_log_collection: fewer helper
	// processes per container, no logs in Nomad.
	DockerDisableLogs bool

	// ExtraClients is how many Nomad client agents run besides the first. Each has its own
	// Consul client agent, because two Nomad clients of one Consul agent deregister each
	// other's services.
	ExtraClients int
	// CatalogDir becomes the read-only static host volume "catalog" of every node.
	CatalogDir string
	// VolumePlugins is a directory of plugins for host volumes; only the first node uses
	// it. Empty: none.
	VolumePlugins string

	// Binaries are the agents' executables; Tools finds those that are empty.
	Binaries Binaries
}

// Ports are the HTTP ports of the three agents.
type Ports struct {
	Nomad, Consul, Vault int
}

// The environment variables that replace the fixed ports of `orch-dev dev`.
const (
	EnvNomadPort  = "ORCH_DEV_NOMAD_PORT"
	EnvConsulPort = "ORCH_DEV_CONSUL_PORT"
	EnvVaultPort  = "ORCH_DEV_VAULT_PORT"
)

// DevPorts returns the usual ports 4646, 8500 and 8200, or what their environment variables
// contain (0: a free port). The error names every invalid variable.
func DevPorts(getenv func(string) string) (Ports, error) {
	p := Ports{Nomad: 4646, Consul: 8500, Vault: 8200}
	var errs []error
	for name, port := range map[string]*int{EnvNomadPort: &p.Nomad, EnvConsulPort: &p.Consul, EnvVaultPort: &p.Vault} {
		text := getenv(name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 65535 {
			errs = append(errs, fmt.Errorf("%s is %q; it must be a port from 0 to 65535", name, text))
			continue
		}
		*port = n
	}
	return p, errors.Join(errs...)
}

// Component names one agent of a stack.
type Component string

// The agents that every stack has. Nomad names two processes together: the server and the
// first node's client. In one process the client would register before the server has its
// keys, would be refused about every second time, and would then wait for 15 to 30 s before
// it retries (a constant in Nomad).
const (
	Nomad  Component = "nomad"
	Consul Component = "consul"
	Vault  Component = "vault"
	// NomadServer is only the server: when it is killed, the nodes keep running.
	NomadServer Component = "nomad-server"
)

// NomadClient is the Nomad client agent of a node, 0 ≤ i ≤ Config.ExtraClients.
func NomadClient(i int) Component { return Component("nomad-client-" + strconv.Itoa(i)) }

// ConsulClient is the Consul client agent beside NomadClient(i), 1 ≤ i.
func ConsulClient(i int) Component { return Component("consul-client-" + strconv.Itoa(i)) }

// Each stack takes its ports from a slot. Slots are outside the kernel's ephemeral range if
// possible: while an agent is down, the kernel could give its port to an outgoing
// connection, and the agent could not be restarted.
const (
	slotBase       = 12000
	slotSize       = 1000
	slotCount      = 20
	slotAgentPorts = 300 // of a slot; the rest is for tasks
)

const (
	// DefaultDynamicPorts is how many ports all nodes of a stack have together.
	DefaultDynamicPorts = slotSize - slotAgentPorts
	// MaxExtraClients follows from the ports that a stack has for its agents.
	MaxExtraClients = 39
)

// validate reports all mistakes together.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, port := range map[string]int{"Ports.Nomad": c.Ports.Nomad, "Ports.Consul": c.Ports.Consul, "Ports.Vault": c.Ports.Vault} {
		if port < 0 || port > 65535 {
			bad("%s is %d, want 0 to 65535", name, port)
		}
	}
	if c.ExtraClients < 0 || c.ExtraClients > MaxExtraClients {
		bad("ExtraClients is %d, want 0 to %d", c.ExtraClients, MaxExtraClients)
	}
	nodes := 1 + c.ExtraClients
	switch lo, hi := c.DynamicPorts[0], c.DynamicPorts[1]; {
	case lo == 0 && hi >= 0 && hi*nodes <= DefaultDynamicPorts:
	case lo > 0 && hi <= 65535 && hi-lo+1 >= nodes:
	default:
		bad("DynamicPorts is {%d, %d}, want {0, 0}, {0, n} with at most %d ports in all, or {min, max} with a port per node",
			lo, hi, DefaultDynamicPorts)
	}
	if c.MemoryMB < 0 || c.CPUMHz < 0 {
		bad("MemoryMB and CPUMHz must not be negative")
	}
	if c.DockerSocket != "" && !strings.HasPrefix(c.DockerSocket, "unix:///") {
		bad("DockerSocket is %q, want unix:///path", c.DockerSocket)
	}
	if c.CatalogDir != "" {
		if st, err := os.Stat(c.CatalogDir); err != nil || !st.IsDir() {
			bad("CatalogDir %q is not a directory", c.CatalogDir)
		}
	}
	return errors.Join(errs...)
}

// absolute makes the paths independent of the working directory.
func (c *Config) absolute() error {
	for _, path := range []*string{&c.Dir, &c.CatalogDir, &c.VolumePlugins} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	return nil
}

// PortTakenError says that a port of the configuration is in use.
type PortTakenError struct {
	Component Component
	Port      int
}

func (e *PortTakenError) Error() string {
	env := map[Component]string{Nomad: EnvNomadPort, Consul: EnvConsulPort, Vault: EnvVaultPort}[e.Component]
	return fmt.Sprintf("port %d, which %s needs, is in use: end the process that listens on it (ss -ltnp 'sport = :%d' names it), or choose another port with %s",
		e.Port, e.Component, e.Port, env)
}
