package devstack

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/septemberai/orch/deploy"
)

// enginesNamespace is the Nomad namespace of engines in a locked stack.
const enginesNamespace = "engines"

// The names in certificates that Consul and Nomad require with verify_server_hostname.
const (
	consulServerName = "server.dc1.consul"
	consulClientName = "client.dc1.consul"
	nomadServerName  = "server.global.nomad"
	nomadClientName  = "client.global.nomad"
)

// lock contains the certificates and tokens of a locked stack, whose agents refuse unknown
// callers.
type lock struct {
	ca        *authority
	caller    tlsFiles    // the certificate of all callers
	callerTLS *tls.Config // the same, as a configuration

	nomadRoot, consulRoot string // the operator's tokens
	consulAgent           string // the token of all Consul agents in Consul
	consulNomad           string // the token of all Nomad agents in Consul

	mu         sync.Mutex
	nomadOrch  string            // the service's token in Nomad
	consulOrch map[string]string // the service's tokens in Consul, by prefix
}

// newLock creates the certificate authority, the callers' certificate, and the tokens in the
// agents' configuration.
func newLock(dir string) (*lock, error) {
	ca, err := newAuthority(tlsDir(dir))
	if err != nil {
		return nil, err
	}
	l := &lock{ca: ca, consulOrch: map[string]string{}}
	if l.caller, err = ca.issue("client", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}); err != nil {
		return nil, err
	}
	if l.callerTLS, err = l.caller.clientTLS(); err != nil {
		return nil, err
	}
	for _, token := range []*string{&l.nomadRoot, &l.consulRoot, &l.consulAgent, &l.consulNomad} {
		*token = uuid.NewString()
	}
	return l, nil
}

// issue creates the certificate of an agent at addr. name is the name that the agent's peers
// require in it, or empty. On an open stack it returns the zero value.
func (l *lock) issue(c Component, addr, name string) (tlsFiles, error) {
	if l == nil {
		return tlsFiles{}, nil
	}
	hosts := []string{"localhost", loopback}
	if addr != loopback {
		hosts = append(hosts, addr)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if name != "" { // an agent that calls its peers
		hosts, usage = append(hosts, name), append(usage, x509.ExtKeyUsageClientAuth)
	}
	return l.ca.issue(string(c), usage, hosts...)
}

// policy returns a shipped policy with other names. names are pairs of the name in the file
// and its replacement.
func policy(file string, names ...string) (string, error) {
	text, err := deploy.Policies.ReadFile(file)
	return strings.NewReplacer(names...).Replace(string(text)), err
}

// inNamespace returns the replacement for policy of the namespace in a shipped file by the
// stack's namespace of engines.
func (s *Stack) inNamespace() []string {
	return []string{`"` + enginesNamespace + `"`, `"` + s.Namespace + `"`}
}
