package devstack

import (
	"context"
	"crypto/tls"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// access is what every caller of the stack needs, without a token.
func (s *Stack) access() Access {
	a := Access{NomadAddr: s.NomadAddr, ConsulAddr: s.ConsulAddr, VaultAddr: s.VaultAddr}
	if s.lock != nil {
		a.CACert, a.ClientCert, a.ClientKey = s.lock.caller.CA, s.lock.caller.Cert, s.lock.caller.Key
	}
	return a
}

// Operator is the access of an operator, who may do everything.
func (s *Stack) Operator() Access {
	a := s.beforeVault()
	a.VaultToken = s.VaultRootToken
	return a
}

// beforeVault is the operator's access without Vault's token, which exists only after Vault
// was initialised.
func (s *Stack) beforeVault() Access {
	a := s.access()
	if s.lock != nil {
		a.NomadToken, a.ConsulToken = s.lock.nomadRoot, s.lock.consulRoot
	}
	return a
}

// Orch is the access of the service: its tokens have only the policies in deploy/. It is
// for the deployment with the prefix "orch/" in Consul and the mount "orch" in Vault;
// Deployment returns the access of others.
func (s *Stack) Orch() Access {
	a := s.access()
	a.VaultToken = s.VaultOrchToken
	if s.lock != nil {
		s.lock.mu.Lock()
		defer s.lock.mu.Unlock()
		a.NomadToken, a.ConsulToken = s.lock.nomadOrch, s.lock.consulOrch[orchPrefix]
	}
	return a
}

// orchPrefix is the prefix of the service's keys in Consul that the shipped policy names.
const orchPrefix = "orch/"

// Deployment is the access of the service for another deployment, with its own prefix in
// Consul and its own mount in Vault, which Mount creates.
func (s *Stack) Deployment(ctx context.Context, prefix, mount string) (Access, error) {
	token, err := s.Mount(ctx, mount)
	if err != nil {
		return Access{}, err
	}
	a := s.Orch()
	a.VaultToken = token
	if s.lock != nil {
		a.ConsulToken, err = s.consulOrchToken(ctx, prefix)
	}
	return a, err
}

// NomadConfig is the configuration of a Nomad client with the operator's access, in
// the namespace of engines.
func (s *Stack) NomadConfig() *nomadapi.Config {
	a := s.beforeVault()
	c := &nomadapi.Config{Address: a.NomadAddr, SecretID: a.NomadToken, Namespace: s.Namespace}
	if s.lock != nil {
		c.TLSConfig = &nomadapi.TLSConfig{CACert: a.CACert, ClientCert: a.ClientCert, ClientKey: a.ClientKey}
	}
	return c
}

// ConsulConfig is the configuration of a Consul client with the operator's access.
func (s *Stack) ConsulConfig() *consulapi.Config {
	a := s.beforeVault()
	return &consulapi.Config{
		Address: a.ConsulAddr, Token: a.ConsulToken,
		TLSConfig: consulapi.TLSConfig{CAFile: a.CACert, CertFile: a.ClientCert, KeyFile: a.ClientKey},
	}
}

// TLS is the TLS configuration of a caller of the agents; nil on an open stack.
func (s *Stack) TLS() *tls.Config {
	if s.lock == nil {
		return nil
	}
	return s.lock.callerTLS.Clone()
}
