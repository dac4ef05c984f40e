package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	vault "github.com/hashicorp/vault/api"
)

const vaultRemedy = "give the token the policy deploy/vault/orch.policy.hcl, with the mount of ORCH_VAULT_MOUNT"

func (s *Stores) vaultRights(ctx context.Context) []Result {
	const none = "preflight-check" // no engine, no product
	logical := s.Vault.Logical()
	read := func(path string) func() error {
		return func() error { _, err := logical.ReadWithContext(ctx, path); return err }
	}
	list := func(path string) func() error {
		return func() error { _, err := logical.ListWithContext(ctx, path); return err }
	}
	// A check-and-set at a version that cannot be changes nothing. It needs "update" if there
	// is something at the path, and otherwise "create"; which of them, it cannot choose.
	write := func(path string) func() error {
		return func() error {
			_, err := logical.WriteWithContext(ctx, path, map[string]any{"options": map[string]any{"cas": 1 << 30}, "data": map[string]any{}})
			return err
		}
	}
	data, metadata, destroy := s.Mount+"/data/", s.Mount+"/metadata/", s.Mount+"/destroy/"
	mounted := s.mounted(ctx)
	results := []Result{mounted}
	if mounted.State != OK {
		return results // a KV v1 engine would take the writes below
	}
	for _, right := range []struct {
		path, capabilities string
		try                func() error
	}{
		{data + "engines/*", "read", read(data + "engines/" + none)},
		{data + "engines/*", "create, update", write(data + "engines/" + none)},
		{metadata + "engines/*", "read", read(metadata + "engines/" + none)},
		{metadata + "engines/*", "list", list(metadata + "engines/")},
		{metadata + "engines/*", "delete", func() error { _, err := logical.DeleteWithContext(ctx, metadata+"engines/"+none); return err }},
		{destroy + "engines/*", "update", func() error {
			_, err := logical.WriteWithContext(ctx, destroy+"engines/"+none, map[string]any{"versions": []int{1}})
			return err
		}},
		{data + "brains/*", "read", read(data + "brains/" + none)},
		{data + "brains/*", "create, update", write(data + "brains/" + none)},
		{metadata + "brains/*", "read", read(metadata + "brains/" + none)},
		{metadata + "brains/*", "list", list(metadata + "brains/")},
		{metadata + "brains/*", "delete", func() error { _, err := logical.DeleteWithContext(ctx, metadata+"brains/"+none); return err }},
		{data + "deployment", "read", read(data + "deployment")},
		{data + "deployment", "create, update", write(data + "deployment")},
		{metadata + "deployment", "read", read(metadata + "deployment")},
		{data + "products/*", "read", read(data + "products/" + none)},
		{data + "products/*", "create, update", write(data + "products/" + none)},
		{metadata + "products/*", "read", read(metadata + "products/" + none)},
		{metadata + "products/*", "list", list(metadata + "products/")},
		{data + "engine-env", "read", read(data + "engine-env")},
		{data + "engine-env", "create, update", write(data + "engine-env")},
		{"auth/token/lookup-self", "read", read("auth/token/lookup-self")},
		{"auth/token/renew-self", "update", func() error { _, err := logical.WriteWithContext(ctx, "auth/token/renew-self", nil); return err }},
	} {
		results = append(results, vaultRight(fmt.Sprintf("path %q: %s", right.path, right.capabilities), right.try))
	}
	return results
}

// mounted reports whether a KV v2 engine is mounted at Mount. Every token with a right there
// may read that.
func (s *Stores) mounted(ctx context.Context) Result {
	return vaultRight(fmt.Sprintf("a KV v2 engine at %q, and rights in it", s.Mount), func() error {
		mount, err := s.Vault.Logical().ReadWithContext(ctx, "sys/internal/ui/mounts/"+s.Mount)
		if err == nil && mount != nil {
			if options, _ := mount.Data["options"].(map[string]any); options["version"] != "2" {
				err = errNotV2
			}
		}
		return err
	})
}

// errNotV2 is the response of Vault to a path that no KV v2 engine serves.
var errNotV2 = &vault.ResponseError{StatusCode: http.StatusNotFound, Errors: []string{"the engine there is not KV v2"}}

func vaultRight(needs string, try func() error) Result {
	r := Result{Store: "vault", Needs: needs, State: OK}
	err := try()
	var bad *vault.ResponseError
	switch {
	case err == nil:
	case !errors.As(err, &bad) || bad.StatusCode >= http.StatusInternalServerError:
		r.State, r.Said, r.Remedy = Unknown, err.Error(), "see that Vault can be reached at VAULT_ADDR, and is unsealed"
	case refused(bad.StatusCode):
		r.State, r.Said, r.Remedy = Missing, strings.Join(bad.Errors, "; "), vaultRemedy
	case bad.StatusCode == http.StatusNotFound && len(bad.Errors) > 0:
		r.State, r.Said, r.Remedy = Missing, strings.Join(bad.Errors, "; "), "mount a KV v2 engine (vault secrets enable -path=... -version=2 kv)"
	}
	return r
}
