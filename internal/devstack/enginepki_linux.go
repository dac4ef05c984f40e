package devstack

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// EnginePKI sets up in Vault what ORCH_ENGINE_TLS=pki needs: an authority of its own, the
// role that issues certificates, and the login of engines. It returns the file with the
// certificate of the authority. Again, it only returns that.
func (s *Stack) EnginePKI(ctx context.Context) (caFile string, err error) {
	caFile = filepath.Join(s.cfg.Dir, "engines-ca.pem")
	if _, err := os.Stat(caFile); err == nil {
		return caFile, nil
	}
	client, err := s.vaultClient(s.VaultRootToken)
	if err != nil {
		return "", err
	}
	write := func(path string, data any) (map[string]any, error) {
		text, err := json.Marshal(data)
		if err != nil {
			return nil, err
		}
		secret, err := client.Logical().WriteBytesWithContext(ctx, path, text)
		if err != nil {
			return nil, fmt.Errorf("vault write %s: %w", path, err)
		}
		if secret == nil {
			return nil, nil
		}
		return secret.Data, nil
	}
	if _, err := write("sys/mounts/pki-engines", map[string]any{"type": "pki", "config": map[string]any{"max_lease_ttl": "87600h"}}); err != nil {
		return "", err
	}
	root, err := write("pki-engines/root/generate/internal", map[string]any{"common_name": "engines", "ttl": "87600h", "key_type": "ec", "key_bits": 256})
	if err != nil {
		return "", err
	}
	logins, err := client.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return "", err
	}
	login := logins["jwt-nomad/"]
	if login == nil {
		return "", fmt.Errorf("vault has no login of engines")
	}
	text, err := policy("vault/engine.pki-role.json", "ACCESSOR", login.Accessor)
	if err != nil {
		return "", err
	}
	rules, err := policy("vault/engine-tls.policy.hcl")
	if err != nil {
		return "", err
	}
	role, err := policy("vault/engine-tls.role.json", s.inNamespace()...)
	if err != nil {
		return "", err
	}
	for path, data := range map[string]any{
		"pki-engines/roles/engine": json.RawMessage(text), "sys/policies/acl/engine-tls": map[string]any{"policy": rules}, "auth/jwt-nomad/role/engine-tls": json.RawMessage(role),
	} {
		if _, err := write(path, data); err != nil {
			return "", err
		}
	}
	certificate, _ := root["certificate"].(string)
	return caFile, os.WriteFile(caFile, []byte(certificate), 0o600)
}
