package outages

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/preflight"
	"github.com/septemberai/orch/internal/service"
)

// TestRefusals takes the service's rights in each store away and gives them back. Calls that
// need the store are refused as such, nothing that the store hides counts as gone, and
// everything works again without a restart.
func TestRefusals(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t, devstack.Config{Locked: true})
	const prefix = "refusal/"
	r := harness.StartService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "3", "ORCH_RECONCILE_INTERVAL_S": "1"})
	c, ctx := r.Product(t, nil), t.Context()
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the refusals")
	pid := harness.Export(t, e, e.APIKey).Runs[0].PID
	rights := rightsOf(t, stack, prefix)
	for name, tc := range map[string]struct {
		store, rules string
		reads        bool // whether the engine can still be read
		every        bool // whether every call needs the right
	}{
		"Consul":          {"consul", `session_prefix "" { policy = "write" } node_prefix "" { policy = "read" }`, false, true},
		"Consul, writing": {"consul", `key_prefix "refusal/" { policy = "read" } session_prefix "" { policy = "write" } service_prefix "engine-" { policy = "read" } node_prefix "" { policy = "read" }`, true, false},
		"Nomad":           {"nomad", `namespace "default" { policy = "read" }`, true, false},
		"Vault":           {"vault", `path "auth/token/lookup-self" { capabilities = ["read"] }`, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			// A call within a second of the last good probe may begin, and ends when the
			// right is back: not with the engine that must stay.
			if _, err := c.Provision(ctx, "victim", ""); err != nil {
				t.Fatal(err)
			}
			set := rights[tc.store]
			before := set(tc.rules)
			back := func() { set(before) }
			t.Cleanup(back)
			refused := func(call func() error) {
				t.Helper()
				harness.WantCode(t, call(), http.StatusBadGateway, "BACKEND_REFUSED")
			}
			harness.Eventually(t, "a provision is refused", func() error {
				err := harness.ErrOf(c.Provision(ctx, "new", ""))
				if err == nil || !strings.Contains(err.Error(), "BACKEND_REFUSED") {
					return fmt.Errorf("a provision gets %w", err)
				}
				return nil
			})
			harness.Eventually(t, "health says that it is refused", func() error {
				h, err := c.Health(ctx)
				if err != nil || h.Status != "degraded" || h.Subsystems[tc.store] != "refused" {
					return fmt.Errorf("%+v, %w", h, err)
				}
				return nil
			})
			refused(func() error { return harness.ErrOf(c.Destroy(ctx, "victim")) })
			refused(func() error { return harness.ErrOf(c.RotateKey(ctx, "u")) })
			if got, err := c.Engine(ctx, "u"); !tc.reads {
				refused(func() error { return err })
			} else if err != nil || got.APIKey != e.APIKey || got.Status != "running" {
				t.Errorf("%+v, %v", got, err)
			}
			if tc.every {
				began := time.Now()
				harness.Eventually(t, "the replica is not ready", func() error {
					if err := c.Ready(ctx); err == nil {
						return fmt.Errorf("ready")
					}
					return nil
				})
				t.Logf("not ready after %s", time.Since(began).Round(time.Millisecond))
				refused(func() error { return c.Ready(ctx) })
				everyOperation(r, t, c, "u", http.StatusBadGateway, "BACKEND_REFUSED")
			}
			if n := r.Logs.Count("[ERROR]", "store="+tc.store, "needs="); n == 0 {
				t.Error("the log does not name the missing right")
			}
			for _, user := range []string{"u", "new", "victim"} {
				if name := "/" + base64.RawURLEncoding.EncodeToString([]byte(user)); strings.Contains(r.Logs.String(), name+`"`) || strings.Contains(r.Logs.String(), name+"\\") {
					t.Errorf("the log names user %s by a key", user)
				}
			}
			back()
			harness.Eventually(t, "all works again", func() error {
				return harness.ErrOf(c.Admit(ctx, "new", client.AdmitOptions{AutoProvision: true, AutoWake: true}))
			})
			for _, user := range []string{"new", "victim"} {
				harness.Eventually(t, user+" is destroyed", func() error {
					if _, err := c.Destroy(ctx, user); !errors.Is(err, client.ErrEngineNotFound) {
						return fmt.Errorf("not yet: %w", err)
					}
					return nil
				})
			}
			// What was refused may have begun, and then it ends now.
			harness.Eventually(t, "the engine has its key", func() error {
				got, err := c.Engine(ctx, "u")
				if err != nil {
					return err
				}
				e = got
				m := harness.Export(t, got, got.APIKey)
				if len(m.Runs) != 1 || m.Runs[0].PID != pid {
					t.Fatalf("the engine was restarted: %+v", m.Runs)
				}
				return m.Knows("before the refusals")
			})
			if list, err := r.Admin().Quarantine(ctx); err != nil || len(list.Engines) > 0 {
				t.Errorf("%+v, %v", list, err)
			}
			for _, row := range r.Audited(t, "registry_recover") {
				t.Errorf("a refusal was taken for a loss: %+v", row)
			}
		})
	}
	t.Run("Check", func(t *testing.T) { checkEachRight(t, stack, prefix, rights) })
	if _, err := c.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
}

// rightsOf returns functions that replace the service's rights in each store, and return
// those of before. "" replaces nothing.
func rightsOf(t *testing.T, stack *devstack.Stack, prefix string) map[string]func(rules string) string {
	s := harness.OpenStores(t, stack)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return map[string]func(string) string{
		"consul": func(rules string) string {
			policy, _, err := s.Consul.ACL().PolicyReadByName("orch-"+strings.Trim(prefix, "/")+"-", nil)
			must(err)
			before := policy.Rules
			if rules == "" {
				return before
			}
			policy.Rules = rules
			_, _, err = s.Consul.ACL().PolicyUpdate(policy, nil)
			must(err)
			return before
		},
		"nomad": func(rules string) string {
			policy, _, err := s.Nomad.ACLPolicies().Info("orch", nil)
			must(err)
			if rules == "" {
				return policy.Rules
			}
			_, err = s.Nomad.ACLPolicies().Upsert(&api.ACLPolicy{Name: "orch", Rules: rules}, nil)
			must(err)
			return policy.Rules
		},
		"vault": func(rules string) string {
			mount := harness.MountName(prefix)
			before, err := s.Vault.Sys().GetPolicy(mount)
			must(err)
			if rules != "" {
				must(s.Vault.Sys().PutPolicy(mount, rules))
			}
			return before
		},
	}
}

// checkDrivers: the check says which drivers the namespace of engines should allow.
func checkDrivers(t *testing.T, stack *devstack.Stack, check func() []preflight.Result) {
	root := harness.OpenStores(t, stack).Nomad
	shipped, _, err := root.Namespaces().Info(stack.Namespace, nil)
	if err != nil {
		t.Fatal(err)
	}
	allow := func(capabilities *api.NamespaceCapabilities) {
		t.Helper()
		if _, err := root.Namespaces().Register(&api.Namespace{Name: shipped.Name, Description: shipped.Description, Capabilities: capabilities}, nil); err != nil {
			t.Fatal(err)
		}
	}
	defer allow(shipped.Capabilities)
	nodes, _, err := root.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	local := slices.ContainsFunc(check(), func(r preflight.Result) bool {
		return r.State == preflight.Advice && strings.Contains(r.Needs, "ORCH_SNAPSHOT_URL is a directory")
	})
	if local != (len(nodes) > 1) {
		t.Errorf("with %d nodes it advises against a directory of snapshots: %t", len(nodes), local)
	}
	for _, tc := range []struct {
		may  *api.NamespaceCapabilities
		want preflight.State
	}{
		{shipped.Capabilities, preflight.OK},
		{nil, preflight.Advice},
		{&api.NamespaceCapabilities{EnabledTaskDrivers: []string{"docker"}}, preflight.Missing},
		{&api.NamespaceCapabilities{DisabledTaskDrivers: []string{"raw_exec"}}, preflight.Missing},
	} {
		allow(tc.may)
		harness.Eventually(t, fmt.Sprintf("the check says %q of %+v", tc.want, tc.may), func() error {
			for _, r := range check() {
				if strings.HasSuffix(r.Needs, "enabled_task_drivers") {
					if r.State != tc.want || (r.Remedy == "") != (tc.want == preflight.OK) {
						return fmt.Errorf("%+v", r)
					}
					return nil
				}
			}
			return errors.New("nothing")
		})
	}
}

// checkEachRight takes the rights of the shipped policies away, one at a time: the check
// names what is missing, and nothing else.
func checkEachRight(t *testing.T, stack *devstack.Stack, prefix string, rights map[string]func(string) string) {
	access, mount := harness.Deploy(t, stack, prefix)
	cfg, err := config.Load([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_ADMIN_KEY=" + harness.AdminKey, "ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR=" + harness.BinDir,
		"ORCH_CONSUL_PREFIX=" + prefix, "ORCH_VAULT_MOUNT=" + mount, "ORCH_NOMAD_NAMESPACE=" + stack.Namespace,
		"ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func() []preflight.Result {
		results, err := service.Check(t.Context(), cfg, service.Clients(access))
		if err != nil {
			t.Fatal(err)
		}
		return results
	}
	missing := func(blind bool) (needs []string) { // blind: the settings cannot be read
		for _, r := range check() {
			switch {
			case r.State == preflight.Unknown && !blind:
				t.Errorf("not checked: %+v", r)
			case r.State == preflight.Missing:
				needs = append(needs, r.Store+" "+r.Needs)
				if r.Said == "" || r.Remedy == "" {
					t.Errorf("without a reason or a remedy: %+v", r)
				}
			}
		}
		return needs
	}
	if got := missing(false); len(got) > 0 {
		t.Fatalf("missing with all rights: %q", got)
	}
	checkDrivers(t, stack, check)
	in := func(right string) string { return `nomad namespace "engines": ` + right }
	variable := func(right string) string { return in(`variables path "nomad/jobs/engine-*": ` + right) }
	worker := func(right string) string { return in(`variables path "nomad/jobs/orch-brain-*": ` + right) }
	path := func(at, right string) string { return fmt.Sprintf("vault path %q: %s", mount+at, right) }
	for _, tc := range []struct {
		store, from, to string
		want            []string
	}{
		{"nomad", `"submit-job",`, "", []string{in(`submit-job; host_volume "engine-*": write`)}},
		{"nomad", `"list-jobs",`, "", []string{in("list-jobs")}},
		{"nomad", `"read-job",`, "", []string{in("read-job"), in("alloc-lifecycle"), in("read-logs")}}, // without it, no allocation is found
		{"nomad", `"alloc-lifecycle",`, "", []string{in("alloc-lifecycle")}},
		{"nomad", `"read-logs",`, "", []string{in("read-logs")}},
		{"nomad", `"host-volume-register",`, `"host-volume-create",`, []string{in("host-volume-register")}},
		{"nomad", `"host-volume-register",`, `"host-volume-read",`, []string{in("host-volume-create"), in("host-volume-register")}},
		{"nomad", `"host-volume-delete",`, "", []string{in("host-volume-delete")}},
		{"nomad", `["write", "read", "destroy"]`, `["read", "destroy"]`, []string{variable("write")}},
		{"nomad", `["write", "read", "destroy"]`, `["list"]`, []string{variable("read"), variable("write"), variable("destroy")}},
		{"nomad", `["write", "read", "destroy"]`, `["write", "read"]`, []string{variable("destroy")}},
		{"nomad", `path "nomad/jobs/orch-brain-*"`, `path "nomad/jobs/none-*"`, []string{worker("read"), worker("write"), worker("destroy")}},
		{"nomad", `host_volume "engine-*"`, `host_volume "other-*"`, []string{in(`submit-job; host_volume "engine-*": write`)}},
		{"nomad", "node {\n  policy = \"write\"", "node {\n  policy = \"deny\"", []string{"nomad node: read", "nomad node: write"}},
		{"nomad", "node {\n  policy = \"write\"", "node {\n  policy = \"read\"", []string{"nomad node: write"}},
		{"consul", `"refusal/" {
  policy = "write"`, `"refusal/" {
  policy = "read"`, []string{`consul key_prefix "refusal/": write`}},
		{"consul", `session_prefix "" {
  policy = "write"`, `session_prefix "" {
  policy = "read"`, []string{`consul session_prefix "": write`}},
		{"consul", `service_prefix "engine-"`, `service_prefix "other-"`, []string{`consul service_prefix "engine-": read`}},
		{"consul", `node_prefix ""`, `node_prefix "none"`, []string{`consul node_prefix "": read`}},
		{"vault", `/data/engines/*" {
  capabilities = ["create", "update", "read"]`, `/data/engines/*" {
  capabilities = ["create", "update"]`, []string{path("/data/engines/*", "read")}},
		{"vault", `/data/engines/*" {
  capabilities = ["create", "update", "read"]`, `/data/engines/*" {
  capabilities = ["read"]`, []string{path("/data/engines/*", "create, update")}},
		{"vault", `["read", "list", "delete"]`, `["delete"]`, []string{path("/metadata/engines/*", "read"), path("/metadata/engines/*", "list")}},
		{"vault", `["read", "list", "delete"]`, `["read", "list"]`, []string{path("/metadata/engines/*", "delete")}},
		{"vault", `/destroy/engines/*"`, `/destroy/none/*"`, []string{path("/destroy/engines/*", "update")}},
		{"vault", `/data/brains/*"`, `/data/none/*"`, []string{path("/data/brains/*", "read"), path("/data/brains/*", "create, update")}},
		{"vault", `/metadata/brains/*"`, `/metadata/none/*"`, []string{path("/metadata/brains/*", "read"), path("/metadata/brains/*", "list"), path("/metadata/brains/*", "delete")}},
		{"vault", `/data/deployment"`, `/data/none"`, []string{path("/data/deployment", "read"), path("/data/deployment", "create, update")}},
		{"vault", `/metadata/deployment"`, `/metadata/none"`, []string{path("/metadata/deployment", "read")}},
		{"vault", `/data/products/*"`, `/data/none/*"`, []string{path("/data/products/*", "read"), path("/data/products/*", "create, update")}},
		{"vault", `/metadata/products/*"`, `/metadata/none/*"`, []string{path("/metadata/products/*", "read"), path("/metadata/products/*", "list")}},
		{"vault", `/data/engine-env"`, `/data/none"`, []string{path("/data/engine-env", "read"), path("/data/engine-env", "create, update")}},
		{"vault", `"auth/token/lookup-self"`, `"auth/token/none"`, []string{`vault path "auth/token/lookup-self": read`}},
		{"vault", `"auth/token/renew-self"`, `"auth/token/none"`, []string{`vault path "auth/token/renew-self": update`}},
	} {
		t.Run(tc.store+" "+strings.Join(strings.Fields(tc.from), " "), func(t *testing.T) {
			set := rights[tc.store]
			before := set("")
			defer set(before)
			less := strings.Replace(before, tc.from, tc.to, 1)
			if less == before {
				t.Fatalf("the policy has no %s:\n%s", tc.from, before)
			}
			set(less)
			slices.Sort(tc.want)
			harness.Eventually(t, "the check names what is missing", func() error {
				got := missing(strings.HasPrefix(tc.from, "node {"))
				slices.Sort(got)
				if !slices.Equal(got, tc.want) {
					return fmt.Errorf("missing %q, want %q", got, tc.want)
				}
				return nil
			})
		})
	}
}
