package devstack

import (
	"context"
	"fmt"
	"os"
	"regexp"

	"github.com/google/uuid"
	consulapi "github.com/hashicorp/consul/api"
)

// workloadsAuth is the name of the JWT auth method in Consul by which Nomad's
// workloads log in. It is the default of a Nomad agent's service_auth_method and
// task_auth_method.
const workloadsAuth = "nomad-workloads"

// lockConsul creates the tokens of the agents and of the service.
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

// enableConsulLogin sets up the login of Nomad's workload identities in Consul. Nomad must be
// up, because Consul fetches its keys when the login is configured.
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

// consulOrchToken creates a token with the service's policy for a prefix. The second call
// for a prefix returns the same token.
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

// notInName matches the characters that a policy's name in Consul cannot contain.
var notInName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// makeConsulToken creates a policy, and a token with only this policy.
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

// prepareConsul creates Consul's tokens on a locked stack, and gives the servers theirs.
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

// setAgentToken gives a Consul server its token, which the server keeps in its state. Servers
// start before the token exists; other agents have it in their configuration.
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

// consulClient returns a client of one Consul agent with the operator's token.
func (s *Stack) consulClient(url string) (*consulapi.Client, error) {
	return consulapi.NewClient(&consulapi.Config{Address: url, Token: s.beforeVault().ConsulToken, HttpClient: s.httpClient()})
}
