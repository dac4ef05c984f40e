// Package devstack starts real Nomad, Consul and Vault agents on loopback, for
// `orch-dev dev` and for the tests, and leaves nothing behind: no process, mount,
// container, cgroup or temporary directory, also when the parent is killed. Stacks
// live side by side. Linux only, as root or as an ordinary user.
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

// Config is what a stack is made of. The zero value is a stack with one node,
// without docker, on free ports, in a temporary directory.
type Config struct {
	// Dir holds all state and logs. It is wiped by Start (only if an earlier stack
	// made it, or if it is empty) and removed by Stop unless Keep is set. Empty: a
	// fresh temporary directory. Nomad puts Unix sockets below it (a path of at most
	// 107 bytes), so keep it short.
	Dir string
	// Keep leaves Dir with the logs in place at Stop.
	Keep bool
	// KeyFile is a file in Dir that goes with the stack, however that ends, also
	// when Keep is set: its owner writes addresses and keys into it. May be empty.
	KeyFile string

	// Locked has the agents refuse strangers, as on a cluster in production: ACLs that
	// deny by default, TLS with a certificate authority of the stack's own, engines in
	// the Nomad namespace "engines", and the service with tokens that carry only the
	// policies in deploy/.
	Locked bool

	Ports    Ports             // zero fields: a free loopback port
	Logger   hclog.Logger      // nil: nothing is logged
	Progress func(line string) // a line per step for a human; may be nil

	// DynamicPorts is the range {min, max} that Nomad gives to tasks, shared out
	// evenly among the nodes. Zero: a range that no other stack on this machine has
	// (DefaultDynamicPorts wide). {0, n}: n ports per node of such a range, so that a
	// test can run out of ports.
	DynamicPorts [2]int
	// MemoryMB and CPUMHz override the totals of every node; a narrow value gives
	// real exhaustion. Zero: what the machine has.
	MemoryMB, CPUMHz int

	// DockerSocket ("unix:///...") turns Nomad's docker driver on. Empty: off.
	DockerSocket string
	// DockerDisableLogs sets the driver's disable_log_collection: fewer helper
	// processes per container, no logs in Nomad.
	DockerDisableLogs bool

	// ExtraClients is how many more Nomad client agents run, each with a Consul
	// client agent of its own (two Nomad clients on one Consul agent deregister each
	// other's services).
	ExtraClients int
	// CatalogDir becomes the read-only static host volume "catalog" of every node.
	CatalogDir string
	// VolumePlugins is a folder of plugins for host volumes, which the first node alone
	// has. Empty: none.
	VolumePlugins string

	// Binaries are the agents; the empty ones are found by Tools.
	Binaries Binaries
}

// Ports are the HTTP ports of the three agents.
type Ports struct {
	Nomad, Consul, Vault int
}

// The environment variables that move the fixed ports of `orch-dev dev`.
const (
	EnvNomadPort  = "ORCH_DEV_NOMAD_PORT"
	EnvConsulPort = "ORCH_DEV_CONSUL_PORT"
	EnvVaultPort  = "ORCH_DEV_VAULT_PORT"
)

// DevPorts are the usual ports 4646, 8500 and 8200, each unless its environment
// variable says otherwise (0: a free port).
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
			errs = append(errs, fmt.Errorf("%s is %q, want a port from 0 to 65535", name, text))
			continue
		}
		*port = n
	}
	return p, errors.Join(errs...)
}

// Component names one agent of a stack.
type Component string

// The agents every stack has. Nomad is the server and the first node's client
// together, two processes: a client that starts with its server in one process
// registers before the server has its keys, is refused every other time, and waits
// 15 to 30 s before it tries again (a constant in Nomad).
const (
	Nomad  Component = "nomad"
	Consul Component = "consul"
	Vault  Component = "vault"
	// NomadServer is the server alone: its API is gone, the nodes live.
	NomadServer Component = "nomad-server"
)

// NomadClient is the Nomad client agent of a node, 0 ≤ i ≤ Config.ExtraClients.
func NomadClient(i int) Component { return Component("nomad-client-" + strconv.Itoa(i)) }

// ConsulClient is the Consul client agent beside NomadClient(i), 1 ≤ i.
func ConsulClient(i int) Component { return Component("consul-client-" + strconv.Itoa(i)) }

// The ports of stacks come in slots, outside the kernel's ephemeral range where
// that leaves room: a port the kernel hands to some outgoing connection while an
// agent is down would keep the agent from coming back.
const (
	slotBase       = 12000
	slotSize       = 1000
	slotCount      = 20
	slotAgentPorts = 300 // of a slot; the rest is for tasks
)

const (
	// DefaultDynamicPorts is how many ports all nodes of a stack have together.
	DefaultDynamicPorts = slotSize - slotAgentPorts
	// MaxExtraClients follows from the ports a stack has for its agents.
	MaxExtraClients = 39
)

// validate reports every problem at once.
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
	return fmt.Sprintf("port %d, wanted for %s, is taken: end what listens there (ss -ltnp 'sport = :%d' names it), or choose another port with %s",
		e.Port, e.Component, e.Port, env)
}
