package terraform

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/hcl"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/deploy"
)

// source returns a file of deploy.
func source(t *testing.T, name string) string {
	t.Helper()
	b, err := deploy.Policies.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// equalFiles fails the test unless what the modules made is what the files in deploy say. The
// names in the files are the modules' defaults.
func (c *cluster) equalFiles(t *testing.T) {
	t.Helper()
	equal := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is\n%v\nthe file says\n%v", what, got, want)
		}
	}

	namespace, _, err := c.nomad.Namespaces().Info("engines", nil)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := hcl.Decode(&fields, source(t, "nomad/engines.namespace.hcl")); err != nil {
		t.Fatal(err)
	}
	// The module reads each field by its name.
	equal("the list of fields of the namespace", slices.Sorted(maps.Keys(fields)), []string{"capabilities", "description", "name"})
	equal("the list of its capabilities", slices.Sorted(maps.Keys(fields["capabilities"].([]map[string]any)[0])), []string{"enabled_task_drivers"})
	equal("the description of the namespace", namespace.Description, fields["description"])
	drivers := []string{}
	for _, d := range fields["capabilities"].([]map[string]any)[0]["enabled_task_drivers"].([]any) {
		drivers = append(drivers, d.(string))
	}
	equal("the list of drivers", namespace.Capabilities.EnabledTaskDrivers, drivers)

	rights, _, err := c.nomad.ACLPolicies().Info("orch-job", nil)
	if err != nil {
		t.Fatal(err)
	}
	equal("the policy in Nomad", rights.Rules, source(t, "nomad/orch.policy.hcl"))
	equal("the job that has the policy", *rights.JobACL, nomad.JobACL{Namespace: nomad.DefaultNamespace, JobID: "orch"})

	policy, _, err := c.consul.ACL().PolicyReadByName("orch", nil)
	if err != nil || policy == nil {
		t.Fatalf("%+v, %v", policy, err)
	}
	equal("the policy in Consul", policy.Rules, source(t, "consul/orch.policy.hcl"))
	rules, _, err := c.consul.ACL().BindingRuleList("nomad-workloads", nil)
	if err != nil || len(rules) != 2 {
		t.Fatalf("%d binding rules, %v", len(rules), err)
	}
	var rule consul.ACLBindingRule
	if err := json.Unmarshal([]byte(source(t, "consul/orch.binding-rule.json")), &rule); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range rules {
		if r.BindType == rule.BindType {
			rule.ID, rule.CreateIndex, rule.ModifyIndex, found = r.ID, r.CreateIndex, r.ModifyIndex, true
			equal("the binding rule", *r, rule)
		}
	}
	if !found {
		t.Errorf("there is no rule of the type %s", rule.BindType)
	}

	for _, name := range []string{"orch", "nomad-workloads", "engine-tls"} {
		got, err := c.vault.Sys().GetPolicyWithContext(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		equal("the policy "+name+" in Vault", got, source(t, "vault/"+name+".policy.hcl"))
		c.equalRole(t, "auth/jwt-nomad/role/"+name, source(t, "vault/"+name+".role.json"))
	}
	logins, err := c.vault.Sys().ListAuthWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	role := strings.ReplaceAll(source(t, "vault/engine.pki-role.json"), "ACCESSOR", logins["jwt-nomad/"].Accessor)
	c.equalRole(t, "pki-engines/roles/engine", role)
}

// equalRole compares each field of a role in Vault with a file.
func (c *cluster) equalRole(t *testing.T, path, file string) {
	t.Helper()
	got, err := c.vault.Logical().ReadWithContext(t.Context(), path)
	if err != nil || got == nil {
		t.Fatalf("%s: %+v, %v", path, got, err)
	}
	var want map[string]any
	if err := json.Unmarshal([]byte(file), &want); err != nil {
		t.Fatal(err)
	}
	if len(want) < 8 {
		t.Errorf("the file of %s has %d fields", path, len(want))
	}
	for field, value := range want {
		is := got.Data[field]
		if n, ok := is.(json.Number); ok {
			is, _ = n.Float64()
		}
		if text, ok := value.(string); ok {
			if d, err := time.ParseDuration(text); err == nil {
				value = d.Seconds()
			}
		}
		if !reflect.DeepEqual(is, value) {
			t.Errorf("%s of %s is %v (%T), the file says %v", field, path, is, is, value)
		}
	}
}

// otherNames plans the modules with other names than those in the files: no name of the files
// is left, except those of the job orch and of its policies.
func (c *cluster) otherNames(t *testing.T) {
	w := newExample(t, append(c.env(t), `TF_VAR_secrets={}`)...)
	for _, name := range []string{"main.tf", "variables.tf", "outputs.tf"} {
		if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	w.file("main.tf", `
module "consul" {
  source         = "../../modules/consul"
  prefix         = "team/a/"
  auth_method    = "workloads-a"
  orch_namespace = "platform"
  jwks_url       = "https://nomad.example.com/jwks"
}
module "vault" {
  source         = "../../modules/vault"
  mount          = "team-a"
  auth_path      = "jwt-a"
  namespace      = "brains"
  orch_namespace = "platform"
  jwks_url       = "https://nomad.example.com/jwks"
}
module "nomad" {
  source         = "../../modules/nomad"
  namespace      = "brains"
  orch_namespace = "platform"
}
variable "secrets" {
  type      = map(string)
  ephemeral = true
}
module "orch" {
  source          = "../../modules/orch"
  namespace       = "brains"
  orch_namespace  = "platform"
  prefix          = "team/a/"
  mount           = "team-a"
  secrets         = var.secrets
  secrets_version = 7
}
`)
	w.must("init", "-no-color")
	w.must("plan", "-no-color", "-out", "../plan")
	var plan struct {
		Changes []struct {
			Address string
			Change  struct{ After map[string]any }
		} `json:"resource_changes"`
	}
	if err := json.Unmarshal([]byte(w.must("show", "-json", "../plan")), &plan); err != nil {
		t.Fatal(err)
	}
	after := map[string]string{}
	for _, change := range plan.Changes {
		delete(change.Change.After, "jobspec")
		text, err := json.Marshal(change.Change.After)
		if err != nil {
			t.Fatal(err)
		}
		after[change.Address] = strings.NewReplacer(`\`, "", `\u003c`, "<").Replace(string(text))
	}
	for address, wants := range map[string][]string{
		"module.nomad.nomad_namespace.engines":                        {`"name":"brains"`, `["docker","raw_exec"]`},
		"module.nomad.nomad_acl_policy.orch":                          {`namespace "brains" {`, `"namespace":"platform"`},
		"module.consul.consul_acl_policy.orch":                        {`key_prefix "team/a/" {`},
		"module.consul.consul_acl_binding_rule.orch":                  {`value.nomad_namespace == "platform" and`, `"auth_method":"workloads-a"`},
		`module.vault.vault_policy.all["orch"]`:                       {`path "team-a/data/engines/*" {`, `path "team-a/metadata/products/*" {`},
		`module.vault.vault_policy.all["nomad-workloads"]`:            {`path "team-a/data/engine-env" {`},
		`module.vault.vault_generic_endpoint.role["orch"]`:            {`"nomad_namespace":["platform"]`, `"path":"auth/jwt-a/role/orch"`, `"token_period":1800`},
		`module.vault.vault_generic_endpoint.role["nomad-workloads"]`: {`"nomad_namespace":["brains"]`},
		"module.orch.nomad_job.orch":                                  {`"ORCH_NOMAD_NAMESPACE":"brains"`, `"ORCH_CONSUL_PREFIX":"team/a/"`, `"ORCH_VAULT_MOUNT":"team-a"`, `"namespace":"platform"`, `"generation":"7"`},
		"module.orch.nomad_variable.secrets":                          {`"namespace":"platform"`},
		"module.vault.vault_jwt_auth_backend.nomad":                   {`"path":"jwt-a"`},
		"module.vault.vault_mount.keys":                               {`"path":"team-a"`},
	} {
		for _, want := range wants {
			if !strings.Contains(after[address], want) {
				t.Errorf("%s does not have %s, but %s", address, want, after[address])
			}
		}
	}
	for address, text := range after {
		for _, old := range []string{`"engines"`, `"orch/`, `"default"`} {
			if strings.Contains(text, old) {
				t.Errorf("%s still has %s: %s", address, old, text)
			}
		}
	}
}
