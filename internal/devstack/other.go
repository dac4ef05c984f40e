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

// Stack is a running set of agents; on this system there is none.
type Stack struct {
	NomadAddr, ConsulAddr, VaultAddr string
	VaultRootToken, VaultOrchToken   string
	Namespace                        string
	Dir                              string
	DynamicPorts                     [2]int
}

// Start always fails: tasks, mounts and processes are cleaned up by Linux means.
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

// PID is 0: nothing runs.
func (*Stack) PID(Component) int { return 0 }

// LogFile is empty: there is no log.
func (*Stack) LogFile(Component) string { return "" }

// Operator is empty: nothing runs.
func (*Stack) Operator() Access { return Access{} }

// Orch is empty: nothing runs.
func (*Stack) Orch() Access { return Access{} }

// Deployment always fails.
func (*Stack) Deployment(context.Context, string, string) (Access, error) {
	return Access{}, errLinuxOnly
}

// VaultClient always fails.
func (*Stack) VaultClient() (*vaultapi.Client, error) { return nil, errLinuxOnly }

// NomadConfig is empty: nothing runs.
func (*Stack) NomadConfig() *nomadapi.Config { return &nomadapi.Config{} }

// ConsulConfig is empty: nothing runs.
func (*Stack) ConsulConfig() *consulapi.Config { return &consulapi.Config{} }

// TLS is nil: nothing runs.
func (*Stack) TLS() *tls.Config { return nil }
