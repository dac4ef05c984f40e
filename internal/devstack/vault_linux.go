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
			// An answer that is not waited for is lost, and the key in it.
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

// vaultClient does not read VAULT_* of the environment.
func (s *Stack) vaultClient(token string) (*vaultapi.Client, error) {
	client, err := vaultapi.NewClient(&vaultapi.Config{Address: s.VaultAddr, HttpClient: s.httpClient(), MaxRetries: 0})
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	client.SetNamespace("")
	return client, nil
}

// prepareVault sets up what production has: the KV v2 mount "orch", the two
// policies, and a token for the service. enableVaultLogin does the rest.
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

// Mount gives a deployment a KV v2 mount of its own and returns a token that may do
// there what the service may do, no more. The same name gives the same token again.
// Every stack has the mount "orch".
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
	// Engines of all deployments log in with one role.
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
	// A new KV v2 mount answers "Upgrading from non-versioned to versioned data" for a
	// moment; whoever gets it must not see that.
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
		return "", fmt.Errorf("vault gave no token for the service")
	}
	s.mounts[name] = token
	return token, nil
}

// Mounts are the names of the KV mounts that the stack made.
func (s *Stack) Mounts() []string {
	s.mounting.Lock()
	defer s.mounting.Unlock()
	return slices.Sorted(maps.Keys(s.mounts))
}

// VaultClient is a client with the operator's access. It does not read VAULT_* of the
// environment.
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
