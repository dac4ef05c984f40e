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

// The server names that Consul and Nomad ask for with verify_server_hostname.
const (
	consulServerName = "server.dc1.consul"
	consulClientName = "client.dc1.consul"
	nomadServerName  = "server.global.nomad"
	nomadClientName  = "client.global.nomad"
)

// lock holds what makes the agents of a locked stack refuse strangers.
type lock struct {
	ca        *authority
	caller    tlsFiles    // of everybody who calls the agents
	callerTLS *tls.Config // the same

	nomadRoot, consulRoot string // tokens that may do everything
	consulAgent           string // Consul's token of all Consul agents
	consulNomad           string // Consul's token of all Nomad agents

	mu         sync.Mutex
	nomadOrch  string            // Nomad's token of the service
	consulOrch map[string]string // Consul's tokens of the service, by prefix
}

// newLock creates the certificate authority, the callers' certificate, and the
// tokens that agents have in their configuration.
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

// issue makes the certificate of an agent at addr; the zero value on an open stack.
// name is one that the agent's peers ask for; it may be empty.
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

// policy reads a shipped policy and puts it in place of the names that it is shipped
// with: pairs of a name and what it is here.
func policy(file string, names ...string) (string, error) {
	text, err := deploy.Policies.ReadFile(file)
	return strings.NewReplacer(names...).Replace(string(text)), err
}

// inNamespace puts a shipped file in the namespace that the stack's engines are in.
func (s *Stack) inNamespace() []string {
	return []string{`"` + enginesNamespace + `"`, `"` + s.Namespace + `"`}
}
