package terraform

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// cluster is a locked-down stack of a test, with an operator's access.
type cluster struct {
	stack  *devstack.Stack
	nomad  *nomad.Client
	consul *consul.Client
	vault  *vault.Client
}

// newCluster starts locked-down agents that have nothing of orch: no namespace, policy, role,
// login, mount or token.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{stack: harness.OwnStack(t, devstack.Config{Locked: true, ExtraClients: 1})}
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	c.nomad, err = nomad.NewClient(c.stack.NomadConfig())
	fatal(err)
	c.consul, err = consul.NewClient(c.stack.ConsulConfig())
	fatal(err)
	c.vault, err = c.stack.VaultClient()
	fatal(err)

	tokens, _, err := c.nomad.ACLTokens().List(nil)
	fatal(err)
	for _, token := range tokens {
		if token.Type == "client" {
			fatal(harness.ErrOf(c.nomad.ACLTokens().Delete(token.AccessorID, nil)))
		}
	}
	fatal(harness.ErrOf(c.nomad.ACLPolicies().Delete("orch", nil)))
	fatal(harness.ErrOf(c.nomad.Namespaces().Delete(c.stack.Namespace, nil)))

	fatal(harness.ErrOf(c.consul.ACL().AuthMethodDelete("nomad-workloads", nil)))
	service, _, err := c.consul.ACL().TokenReadSelf(&consul.QueryOptions{Token: c.stack.Orch().ConsulToken})
	fatal(err)
	fatal(harness.ErrOf(c.consul.ACL().TokenDelete(service.AccessorID, nil)))
	fatal(harness.ErrOf(c.consul.ACL().PolicyDelete(service.Policies[0].ID, nil)))

	ctx := t.Context()
	fatal(c.vault.Auth().Token().RevokeTreeWithContext(ctx, c.stack.VaultOrchToken))
	fatal(c.vault.Sys().DisableAuthWithContext(ctx, "jwt-nomad"))
	fatal(c.vault.Sys().UnmountWithContext(ctx, "orch"))
	for _, name := range []string{"orch", "nomad-workloads"} {
		fatal(c.vault.Sys().DeletePolicyWithContext(ctx, name))
	}
	return c
}

// inventory lists what is in the three stores.
func (c *cluster) inventory(t *testing.T) (all []string, err error) {
	t.Helper()
	add := func(what string, names ...string) {
		for _, name := range names {
			all = append(all, what+" "+name)
		}
	}
	everywhere := &nomad.QueryOptions{Namespace: nomad.AllNamespacesNamespace}
	for _, list := range []struct {
		what string
		of   any
		from func() (any, *nomad.QueryMeta, error)
	}{
		{"namespace", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.Namespaces().List(nil)) }},
		{"node pool", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.NodePools().List(nil)) }},
		{"Nomad policy", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.ACLPolicies().List(nil)) }},
		{"Nomad token", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.ACLTokens().List(nil)) }},
		{"Nomad role", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.ACLRoles().List(nil)) }},
		{"Nomad auth method", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.ACLAuthMethods().List(nil)) }},
		{"job", "ID", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.Jobs().List(everywhere)) }},
		{"variable", "Path", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.Variables().List(everywhere)) }},
		{"volume", "Name", func() (any, *nomad.QueryMeta, error) { return wrap(c.nomad.HostVolumes().List(nil, everywhere)) }},
	} {
		of, _, err := list.from()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list.what, err)
		}
		add(list.what, namesOf(t, of, list.of.(string))...)
	}
	acl := c.consul.ACL()
	for what, list := range map[string]func() (any, *consul.QueryMeta, error){
		"Consul policy":       func() (any, *consul.QueryMeta, error) { return wrap(acl.PolicyList(nil)) },
		"Consul role":         func() (any, *consul.QueryMeta, error) { return wrap(acl.RoleList(nil)) },
		"Consul auth method":  func() (any, *consul.QueryMeta, error) { return wrap(acl.AuthMethodList(nil)) },
		"Consul binding rule": func() (any, *consul.QueryMeta, error) { return wrap(acl.BindingRuleList("", nil)) },
		"Consul token":        func() (any, *consul.QueryMeta, error) { return wrap(acl.TokenList(nil)) },
		"session":             func() (any, *consul.QueryMeta, error) { return wrap(c.consul.Session().List(nil)) },
		"key":                 func() (any, *consul.QueryMeta, error) { return wrap(c.consul.KV().List("", nil)) },
	} {
		of, _, err := list()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		field := map[string]string{"Consul token": "Description", "session": "Name", "key": "Key", "Consul binding rule": "Selector"}[what]
		if field == "" {
			field = "Name"
		}
		add(what, namesOf(t, of, field)...)
	}
	services, _, err := c.consul.Catalog().Services(nil)
	if err != nil {
		return nil, err
	}
	for name := range services {
		if name != "nomad" && name != "nomad-client" { // the agents' own, which register a while after their start
			add("service", name)
		}
	}
	ctx := t.Context()
	policies, err := c.vault.Sys().ListPoliciesWithContext(ctx)
	if err != nil {
		return nil, err
	}
	add("Vault policy", policies...)
	mounts, err := c.vault.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return nil, err
	}
	for name := range mounts {
		add("mount", name)
	}
	logins, err := c.vault.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return nil, err
	}
	for name := range logins {
		add("login", name)
	}
	slices.Sort(all)
	return all, nil
}

// passing returns the addresses of the replicas of orch whose checks pass in Consul.
func (c *cluster) passing() (urls []string, err error) {
	list, _, err := c.consul.Health().Service("orch", "", true, nil)
	for _, s := range list {
		urls = append(urls, "http://"+s.Service.Address+":"+strconv.Itoa(s.Service.Port))
	}
	return urls, err
}

// balancer is what operators have in front of orch: each request goes to a replica that
// passes its checks in Consul.
func (c *cluster) balancer(t *testing.T) string {
	t.Helper()
	transport := &http.Transport{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		urls, err := c.passing()
		if err != nil || len(urls) == 0 {
			http.Error(w, fmt.Sprintf("no replica passes, %v", err), http.StatusBadGateway)
			return
		}
		to, err := url.Parse(urls[0])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		(&httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}).ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	return server.URL
}

// jwksURL is where Consul and Vault, which have no client certificate, read the keys of
// workload identities: a client agent.
func (c *cluster) jwksURL(t *testing.T) string {
	t.Helper()
	nodes, _, err := c.nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	node, _, err := c.nomad.Nodes().Info(nodes[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	return "https://" + node.HTTPAddr + "/.well-known/jwks.json"
}

// env is the environment of an operator.
func (c *cluster) env(t *testing.T) []string {
	t.Helper()
	bin := t.TempDir()
	for name, path := range map[string]string{"nomad": harness.Binaries.Nomad, "consul": harness.Binaries.Consul} {
		if err := os.Symlink(path, bin+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	return append(c.stack.Operator().Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
}

// logReplicas logs what happened to the replicas, after a failed test.
func (c *cluster) logReplicas(t *testing.T) {
	list, _, err := c.nomad.Jobs().Allocations("orch", true, &nomad.QueryOptions{Namespace: nomad.DefaultNamespace})
	if err != nil {
		t.Log(err)
	}
	for _, a := range list {
		var events strings.Builder
		for _, ev := range a.TaskStates["orch"].Events {
			fmt.Fprintf(&events, "\n%s: %s", ev.Type, ev.DisplayMessage)
		}
		t.Logf("%s of version %d is %s:%s", a.ID, a.JobVersion, a.ClientStatus, events.String())
	}
}
