package devstack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/google/uuid"
	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/deploy"
)

// enginesNamespace is the Nomad namespace of engines in a locked stack.
const enginesNamespace = "engines"

// workloadsAuth is the name of the JWT auth method in Consul by which Nomad's
// workloads log in. It is the default of a Nomad agent's service_auth_method and
// task_auth_method.
const workloadsAuth = "nomad-workloads"

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

// access is what every caller of the stack needs, without a token.
func (s *Stack) access() Access {
	a := Access{NomadAddr: s.NomadAddr, ConsulAddr: s.ConsulAddr, VaultAddr: s.VaultAddr}
	if s.lock != nil {
		a.CACert, a.ClientCert, a.ClientKey = s.lock.caller.CA, s.lock.caller.Cert, s.lock.caller.Key
	}
	return a
}

// Operator is the access of somebody who may do everything.
func (s *Stack) Operator() Access {
	a := s.beforeVault()
	a.VaultToken = s.VaultRootToken
	return a
}

// beforeVault is the operator's access without Vault's token, which there is only once
// Vault is up.
func (s *Stack) beforeVault() Access {
	a := s.access()
	if s.lock != nil {
		a.NomadToken, a.ConsulToken = s.lock.nomadRoot, s.lock.consulRoot
	}
	return a
}

// Orch is the access of the service: its tokens carry the policies in deploy/ and
// nothing else. It is for the deployment with the prefix "orch/" in Consul and the
// mount "orch" in Vault; Deployment makes others.
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

// Deployment is the access of the service for a deployment of its own: a prefix in
// Consul, and a mount in Vault, which Mount makes.
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

// lockNomad bootstraps Nomad's ACLs through a server, and makes the namespace of
// engines and the service's token. It does nothing where that was done before.
func (s *Stack) lockNomad(ctx context.Context, c Component) error {
	if s.lock == nil {
		return nil
	}
	s.lock.mu.Lock()
	defer s.lock.mu.Unlock()
	cfg := s.NomadConfig()
	cfg.Address, cfg.HttpClient = s.urls[c], s.httpClient()
	client, err := nomadapi.NewClient(cfg)
	if err != nil {
		return err
	}
	if _, _, err := client.ACLTokens().Self((&nomadapi.QueryOptions{}).WithContext(ctx)); err == nil && s.lock.nomadOrch != "" {
		return nil
	}
	w := (&nomadapi.WriteOptions{}).WithContext(ctx)
	if _, _, err := client.ACLTokens().BootstrapOpts(s.lock.nomadRoot, w); err != nil {
		return fmt.Errorf("bootstrap of nomad's ACLs: %w", err)
	}
	if _, err := client.Namespaces().Register(&nomadapi.Namespace{Name: s.Namespace}, w); err != nil {
		return fmt.Errorf("nomad namespace %s: %w", s.Namespace, err)
	}
	rules, err := policy("nomad/orch.policy.hcl")
	if err != nil {
		return err
	}
	if _, err := client.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: "orch", Rules: rules}, w); err != nil {
		return fmt.Errorf("nomad policy orch: %w", err)
	}
	token, _, err := client.ACLTokens().Create(&nomadapi.ACLToken{Name: "orch", Type: "client", Policies: []string{"orch"}}, w)
	if err != nil {
		return fmt.Errorf("nomad token of the service: %w", err)
	}
	s.lock.nomadOrch = token.SecretID
	return nil
}

// lockConsul makes the tokens of the agents and of the service.
func (s *Stack) lockConsul(ctx context.Context) error {
	client, err := s.consulClient(s.ConsulAddr)
	if err != nil {
		return err
	}
	for _, t := range []struct{ name, secret, rules string }{
		{"agents", s.lock.consulAgent, `node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }`},
		{"nomad-agents", s.lock.consulNomad, `agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } service_prefix "" { policy = "write" }`},
	} {
		if err := makeConsulToken(ctx, client.ACL(), t.name, t.secret, t.rules); err != nil {
			return err
		}
	}
	_, err = s.consulOrchToken(ctx, orchPrefix)
	return err
}

// enableConsulLogin lets Nomad's workloads log in. Nomad must be up: Consul fetches
// its keys when the login is configured.
func (s *Stack) enableConsulLogin(ctx context.Context) error {
	if s.lock == nil {
		return nil
	}
	client, err := s.consulClient(s.ConsulAddr)
	if err != nil {
		return err
	}
	acl, w := client.ACL(), (&consulapi.WriteOptions{}).WithContext(ctx)
	ca, err := os.ReadFile(s.lock.ca.caFile())
	if err != nil {
		return err
	}
	_, _, err = acl.AuthMethodCreate(&consulapi.ACLAuthMethod{
		Name: workloadsAuth, Type: "jwt", Config: map[string]any{
			"JWKSURL": s.jwksURL(), "JWKSCACert": string(ca), "JWTSupportedAlgs": []string{"RS256"}, "BoundAudiences": []string{"consul.io"},
			"ClaimMappings": map[string]string{"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task", "nomad_service": "nomad_service"},
		},
	}, w)
	if err != nil {
		return fmt.Errorf("consul auth method %s: %w", workloadsAuth, err)
	}
	_, _, err = acl.BindingRuleCreate(&consulapi.ACLBindingRule{
		AuthMethod: workloadsAuth, BindType: consulapi.BindingRuleBindTypeService, BindName: "${value.nomad_service}", Selector: `"nomad_service" in value`,
	}, w)
	if err != nil {
		return fmt.Errorf("consul binding rule: %w", err)
	}
	return nil
}

// consulOrchToken makes a token that may do what the service may do below a prefix. The same
// prefix gives the same token again.
func (s *Stack) consulOrchToken(ctx context.Context, prefix string) (string, error) {
	s.lock.mu.Lock()
	defer s.lock.mu.Unlock()
	if token := s.lock.consulOrch[prefix]; token != "" {
		return token, nil
	}
	client, err := s.consulClient(s.ConsulAddr)
	if err != nil {
		return "", err
	}
	rules, err := policy("consul/orch.policy.hcl", `"`+orchPrefix+`"`, `"`+prefix+`"`)
	if err != nil {
		return "", err
	}
	token := uuid.NewString()
	if err := makeConsulToken(ctx, client.ACL(), "orch-"+notInName.ReplaceAllString(prefix, "-"), token, rules); err != nil {
		return "", err
	}
	s.lock.consulOrch[prefix] = token
	return token, nil
}

// notInName are the characters that a name of a policy in Consul cannot have.
var notInName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// makeConsulToken makes a policy and a token that has it and nothing else.
func makeConsulToken(ctx context.Context, acl *consulapi.ACL, name, secret, rules string) error {
	w := (&consulapi.WriteOptions{}).WithContext(ctx)
	if _, _, err := acl.PolicyCreate(&consulapi.ACLPolicy{Name: name, Rules: rules}, w); err != nil {
		return fmt.Errorf("consul policy %s: %w", name, err)
	}
	_, _, err := acl.TokenCreate(&consulapi.ACLToken{SecretID: secret, Description: name, Policies: []*consulapi.ACLTokenPolicyLink{{Name: name}}}, w)
	if err != nil {
		return fmt.Errorf("consul token %s: %w", name, err)
	}
	return nil
}

// prepareConsul locks Consul, where that is to be done, with the servers that it has.
func (s *Stack) prepareConsul(ctx context.Context, servers ...Component) error {
	if s.lock == nil {
		return nil
	}
	if err := s.lockConsul(ctx); err != nil {
		return err
	}
	for _, server := range servers {
		if err := s.setAgentToken(ctx, server); err != nil {
			return err
		}
	}
	return nil
}

// setAgentToken gives a Consul server its token, which it keeps in its state. The
// servers start before there is any token; other agents have theirs in their
// configuration.
func (s *Stack) setAgentToken(ctx context.Context, c Component) error {
	client, err := s.consulClient(s.urls[c])
	if err != nil {
		return err
	}
	if _, err := client.Agent().UpdateAgentACLToken(s.lock.consulAgent, (&consulapi.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("consul token of %s: %w", c, err)
	}
	return nil
}

// consulClient is an operator's client of one Consul agent.
func (s *Stack) consulClient(url string) (*consulapi.Client, error) {
	return consulapi.NewClient(&consulapi.Config{Address: url, Token: s.beforeVault().ConsulToken, HttpClient: s.httpClient()})
}

// jwksURL is where Vault and Consul get the public keys of Nomad's workload
// identities. The servers of a locked stack want a certificate from every caller, and
// neither Vault nor Consul can show one there: they ask a client agent.
func (s *Stack) jwksURL() string {
	at := s.NomadAddr
	if s.lock != nil {
		at = s.urls[NomadClient(0)]
	}
	return at + "/.well-known/jwks.json"
}

// awaitKeys waits until a Nomad agent gives the public keys of workload identities.
func (s *Stack) awaitKeys(ctx context.Context, c Component) error {
	web := s.httpClient()
	return s.agents[c].await(ctx, "keys of workload identities", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.urls[c]+"/.well-known/jwks.json", nil)
		if err != nil {
			return err
		}
		resp, err := web.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var keys struct{ Keys []json.RawMessage }
		if err := json.NewDecoder(resp.Body).Decode(&keys); err != nil {
			return err
		}
		if len(keys.Keys) == 0 {
			return errors.New("the server has no keys yet")
		}
		return nil
	})
}
