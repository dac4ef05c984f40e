//go:build !linux

package devstack

import (
	"context"
	"crypto/tls"
	"errors"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
)

var errLinuxOnly = errors.New("the development stack runs on Linux only: use the Vagrant machine")

// Stack is a running set of agents. This operating system cannot run one.
type Stack struct {
	NomadAddr, ConsulAddr, VaultAddr string
	VaultRootToken, VaultOrchToken   string
	Namespace                        string
	Dir                              string
	DynamicPorts                     [2]int
}

// Start always fails: the clean-up of tasks, mounts and processes needs Linux.
func Start(context.Context, Config) (*Stack, error) { return nil, errLinuxOnly }

// Stop does nothing.
func (*Stack) Stop() error { return nil }

// Kill always fails.
func (*Stack) Kill(Component) error { return errLinuxOnly }

// Restart always fails.
func (*Stack) Restart(context.Context, Component) error { return errLinuxOnly }

// Pause always fails.
func (*Stack) Pause(Component) error { return errLinuxOnly }

// Resume always fails.
func (*Stack) Resume(Component) error { return errLinuxOnly }

// PID returns 0.
func (*Stack) PID(Component) int { return 0 }

// DataDir returns "".
func (*Stack) DataDir(Component) string { return "" }

// LogFile returns "".
func (*Stack) LogFile(Component) string { return "" }

// Operator returns the zero value.
func (*Stack) Operator() Access { return Access{} }

// Orch returns the zero value.
func (*Stack) Orch() Access { return Access{} }

// Deployment always fails.
func (*Stack) Deployment(context.Context, string, string) (Access, error) {
	return Access{}, errLinuxOnly
}

// VaultClient always fails.
func (*Stack) VaultClient() (*vaultapi.Client, error) { return nil, errLinuxOnly }

// NomadConfig returns an empty configuration.
func (*Stack) NomadConfig() *nomadapi.Config { return &nomadapi.Config{} }

// ConsulConfig returns an empty configuration.
func (*Stack) ConsulConfig() *consulapi.Config { return &consulapi.Config{} }

// TLS returns nil.
func (*Stack) TLS() *tls.Config { return nil }
