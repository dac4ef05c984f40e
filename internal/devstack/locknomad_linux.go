package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"

	nomadapi "github.com/hashicorp/nomad/api"
)

// lockNomad bootstraps Nomad's ACLs through a server, and creates the namespace of engines
// and the service's token. It does nothing if that has been done.
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
	if err := s.applyNamespace(ctx, s.urls[c]); err != nil {
		return err
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

// applyNamespace creates the namespace of engines from the shipped file, as an operator does.
// The development driver of scale tests is added to its drivers.
func (s *Stack) applyNamespace(ctx context.Context, url string) error {
	spec, err := policy("nomad/engines.namespace.hcl", append(s.inNamespace(), `"raw_exec"]`, `"raw_exec", "mock_driver"]`)...)
	if err != nil {
		return err
	}
	file := filepath.Join(s.Dir, "engines.namespace.hcl")
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, s.cfg.Binaries.Nomad, "namespace", "apply", file)
	cmd.Env = append(agentEnv(), "NOMAD_ADDR="+url, "NOMAD_TOKEN="+s.lock.nomadRoot,
		"NOMAD_CACERT="+s.lock.caller.CA, "NOMAD_CLIENT_CERT="+s.lock.caller.Cert, "NOMAD_CLIENT_KEY="+s.lock.caller.Key)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nomad namespace %s: %w: %s", s.Namespace, err, out)
	}
	return nil
}

// jwksURL is the URL from which Vault and Consul fetch the public keys of Nomad's workload
// identities. On a locked stack that is a client agent's, because servers require a
// certificate from every caller, and Vault and Consul cannot present one.
func (s *Stack) jwksURL() string {
	at := s.NomadAddr
	if s.lock != nil {
		at = s.urls[NomadClient(0)]
	}
	return at + "/.well-known/jwks.json"
}

// awaitKeys waits until a Nomad agent serves the public keys of workload identities.
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
