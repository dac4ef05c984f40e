package devstack

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"
)

// startVault starts Vault and waits until it is active.
func (s *Stack) startVault(ctx context.Context) error {
	if err := s.agents[Vault].start(); err != nil {
		return err
	}
	return s.awaitVault(ctx)
}

// awaitVault initialises Vault the first time, unseals it and waits until it is
// active.
func (s *Stack) awaitVault(ctx context.Context) error {
	client, err := s.vaultClient("")
	if err != nil {
		return err
	}
	return s.agents[Vault].await(ctx, "an unsealed Vault", func(ctx context.Context) error {
		health, err := client.Sys().HealthWithContext(ctx)
		switch {
		case err != nil:
			return err
		case !health.Initialized:
			// No timeout: the response contains the only copy of the unseal key.
			web := s.httpClient()
			web.Timeout = 0
			patient, err := vaultapi.NewClient(&vaultapi.Config{Address: s.VaultAddr, HttpClient: web, MaxRetries: 0})
			if err != nil {
				return err
			}
			init, err := patient.Sys().InitWithContext(ctx, &vaultapi.InitRequest{SecretShares: 1, SecretThreshold: 1})
			if err != nil {
				return err
			}
			s.unsealKey, s.VaultRootToken = init.KeysB64[0], init.RootToken
			return fmt.Errorf("sealed")
		case health.Sealed:
			if _, err := client.Sys().UnsealWithContext(ctx, s.unsealKey); err != nil {
				return err
			}
			return fmt.Errorf("just unsealed")
		case health.Standby:
			return fmt.Errorf("standby")
		}
		return nil
	})
}

// vaultClient returns a client with this token. It ignores the environment variables VAULT_*.
func (s *Stack) vaultClient(token string) (*vaultapi.Client, error) {
	client, err := vaultapi.NewClient(&vaultapi.Config{Address: s.VaultAddr, HttpClient: s.httpClient(), MaxRetries: 0})
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	client.SetNamespace("")
	return client, nil
}

// prepareVault creates what a production Vault has, except for the login of workloads (see
// enableVaultLogin): the KV v2 mount "orch", the two policies, and the service's token.
func (s *Stack) prepareVault(ctx context.Context) error {
	client, err := s.vaultClient(s.VaultRootToken)
	if err != nil {
		return err
	}
	s.mounts = map[string]string{}
	s.VaultOrchToken, err = s.mount(ctx, client, "orch")
	return err
}

// enableVaultLogin sets up the login of Nomad's workload identities in Vault. Nomad must be
// up: Vault fetches its keys when the login is configured.
func (s *Stack) enableVaultLogin(ctx context.Context) error {
	client, err := s.vaultClient(s.VaultRootToken)
	if err != nil {
		return err
	}
	if err := client.Sys().EnableAuthWithOptionsWithContext(ctx, "jwt-nomad", &vaultapi.EnableAuthOptions{Type: "jwt"}); err != nil {
		return fmt.Errorf("vault auth jwt-nomad: %w", err)
	}
	login := map[string]any{
		"jwks_url":           s.jwksURL(),
		"jwt_supported_algs": []string{"RS256", "EdDSA"},
		"default_role":       "nomad-workloads",
	}
	if s.lock != nil {
		ca, err := os.ReadFile(s.lock.ca.caFile())
		if err != nil {
			return err
		}
		login["jwks_ca_pem"] = string(ca)
	}
	if _, err := client.Logical().WriteWithContext(ctx, "auth/jwt-nomad/config", login); err != nil {
		return fmt.Errorf("vault auth jwt-nomad: %w", err)
	}
	for _, name := range []string{"nomad-workloads", "orch"} {
		role, err := policy("vault/"+name+".role.json", s.inNamespace()...)
		if err != nil {
			return err
		}
		if _, err := client.Logical().WriteBytesWithContext(ctx, "auth/jwt-nomad/role/"+name, []byte(role)); err != nil {
			return fmt.Errorf("vault role %s: %w", name, err)
		}
	}
	return nil
}

// Mount creates a KV v2 mount for a deployment, and returns a token with the service's
// policy for this mount. The second call for a name returns the same token. Every stack has
// the mount "orch".
func (s *Stack) Mount(ctx context.Context, name string) (token string, err error) {
	client, err := s.vaultClient(s.VaultRootToken)
	if err != nil {
		return "", err
	}
	return s.mount(ctx, client, name)
}

func (s *Stack) mount(ctx context.Context, client *vaultapi.Client, name string) (token string, err error) {
	s.mounting.Lock()
	defer s.mounting.Unlock()
	if token := s.mounts[name]; token != "" {
		return token, nil
	}
	own := []string{`"orch/`, `"` + name + "/"}
	rules, err := policy("vault/orch.policy.hcl", own...)
	if err != nil {
		return "", err
	}
	if err := client.Sys().PutPolicyWithContext(ctx, name, rules); err != nil {
		return "", fmt.Errorf("vault policy %s: %w", name, err)
	}
	// The engines of all deployments log in with the same role.
	workloads, err := policy("vault/nomad-workloads.policy.hcl", own...)
	if err != nil {
		return "", err
	}
	s.workloads += workloads
	if err := client.Sys().PutPolicyWithContext(ctx, "nomad-workloads", s.workloads); err != nil {
		return "", fmt.Errorf("vault policy nomad-workloads: %w", err)
	}
	mount := &vaultapi.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}
	if err := client.Sys().MountWithContext(ctx, name, mount); err != nil {
		return "", fmt.Errorf("vault mount %s: %w", name, err)
	}
	// For a moment a new KV v2 mount responds "Upgrading from non-versioned to versioned
	// data", which the caller must not see.
	err = s.agents[Vault].await(ctx, "a usable KV mount", func(ctx context.Context) error {
		_, err := client.Logical().ReadWithContext(ctx, name+"/config")
		return err
	})
	if err != nil {
		return "", err
	}
	secret, err := client.Auth().Token().CreateOrphanWithContext(ctx, &vaultapi.TokenCreateRequest{
		Policies: []string{name}, NoDefaultPolicy: true, Period: "768h", DisplayName: name,
	})
	if err != nil {
		return "", fmt.Errorf("vault token of the service: %w", err)
	}
	if token = strings.TrimSpace(secret.Auth.ClientToken); token == "" {
		return "", fmt.Errorf("vault returned no token for the service")
	}
	s.mounts[name] = token
	return token, nil
}

// Mounts returns the names of the KV mounts that the stack created.
func (s *Stack) Mounts() []string {
	s.mounting.Lock()
	defer s.mounting.Unlock()
	return slices.Sorted(maps.Keys(s.mounts))
}

// VaultClient returns a client with the operator's access. It ignores the environment
// variables VAULT_*.
func (s *Stack) VaultClient() (*vaultapi.Client, error) {
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: s.TLS()}}
	client, err := vaultapi.NewClient(&vaultapi.Config{Address: s.VaultAddr, HttpClient: web})
	if err != nil {
		return nil, err
	}
	client.SetToken(s.VaultRootToken)
	client.SetNamespace("")
	return client, nil
}
