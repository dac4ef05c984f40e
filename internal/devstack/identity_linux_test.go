package devstack

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
)

// elsewhere is a namespace that has nothing to do with the service.
const elsewhere = "elsewhere"

// identities are the signed identities of a task, which it read from its environment and
// its secrets directory.
type identities struct{ nomad, vault, consul string }

// runIdentified runs a job whose task passes on its identities.
func runIdentified(t *testing.T, s *Stack, namespace, name string) identities {
	t.Helper()
	client, err := nomadIn(s, namespace, s.lock.nomadRoot)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	job := rawExecJob(name, `{ printenv NOMAD_TOKEN; cat secrets/nomad_vault_test.jwt; echo; cat secrets/nomad_consul_test.jwt; echo; } > `+out+`.tmp; mv `+out+`.tmp `+out+`; exec sleep 12345`)
	job.TaskGroups[0].Tasks[0].Identities = []*nomadapi.WorkloadIdentity{
		{Name: "default", Env: true},
		{Name: "vault_test", Audience: []string{"vault.io"}, File: true, TTL: time.Hour},
		{Name: "consul_test", Audience: []string{"consul.io"}, File: true, TTL: time.Hour},
	}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, _, err := client.Jobs().Deregister(name, true, nil); err != nil {
			t.Error(err)
		}
	})
	var got []string
	eventually(t, func() string {
		text, err := os.ReadFile(out)
		if err != nil {
			return err.Error()
		}
		got = strings.Fields(string(text))
		return ""
	})
	if len(got) != 3 {
		t.Fatalf("the task of %s has %d identities, want 3", name, len(got))
	}
	return identities{got[0], got[1], got[2]}
}

// nomadIn is a client in a namespace with a token.
func nomadIn(s *Stack, namespace, token string) (*nomadapi.Client, error) {
	cfg := s.NomadConfig()
	cfg.Namespace, cfg.SecretID, cfg.HttpClient = namespace, token, s.httpClient()
	return nomadapi.NewClient(cfg)
}

// checkThefts: the name of a job is not enough to be an engine or the service, and
// neither is the namespace.
func checkThefts(t *testing.T, s *Stack) {
	root, err := s.vaultClient(s.VaultRootToken)
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string]map[string]any{"engine-env": {"LLM_API_KEY": "llm-1"}, "engines/a-thief-wants": {"api_key": "k"}} {
		if _, err := root.KVv2("orch").Put(t.Context(), path, data); err != nil {
			t.Fatal(err)
		}
	}
	nomad, err := nomadIn(s, "default", s.lock.nomadRoot)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nomad.Namespaces().Register(&nomadapi.Namespace{Name: elsewhere}, nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ namespace, job, role string }{ // role: of those in Vault, the one that lets it in
		{s.Namespace, "engine-one", "nomad-workloads"},
		{s.Namespace, "stranger", ""},
		{s.Namespace, "orch", ""},
		{elsewhere, "engine-one", ""},
		{elsewhere, "orch", ""},
		{"default", "orch", "orch"},
		{"default", "engine-one", ""},
	} {
		t.Run(tc.namespace+"/"+tc.job, func(t *testing.T) {
			is := runIdentified(t, s, tc.namespace, tc.job)
			for _, role := range []string{"nomad-workloads", "orch"} {
				as, err := s.vaultClient("")
				if err != nil {
					t.Fatal(err)
				}
				login, err := as.Logical().WriteWithContext(t.Context(), "auth/jwt-nomad/login", map[string]any{"role": role, "jwt": is.vault})
				switch {
				case role == tc.role && err != nil:
					t.Errorf("the login as %s: %v", role, err)
				case role != tc.role && (err == nil || !strings.Contains(err.Error(), "does not match any associated bound claim values")):
					t.Errorf("the login as %s: %v, want a refusal of its claims", role, err)
				}
				if err == nil {
					as.SetToken(login.Auth.ClientToken)
				}
				for path, mayRead := range map[string]bool{
					"orch/data/engine-env": tc.role != "", "orch/data/engines/a-thief-wants": tc.role == "orch", "orch/data/brains/a-thief-wants": tc.role == "orch",
				} {
					_, err := as.Logical().ReadWithContext(t.Context(), path)
					checkRead(t, path+" as "+role, err, mayRead && role == tc.role)
				}
				_, err = as.Logical().ListWithContext(t.Context(), "orch/metadata/engines")
				checkRead(t, "the list of all engines' keys as "+role, err, tc.role == "orch" && role == tc.role)
			}
			// In Consul a task is nobody: an engine's service has an identity of its own.
			consul, err := s.consulClient(s.ConsulAddr)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = consul.ACL().Login(&consulapi.ACLLoginParams{AuthMethod: workloadsAuth, BearerToken: is.consul}, nil)
			var status consulapi.StatusError
			if !errors.As(err, &status) || status.Code != http.StatusForbidden {
				t.Errorf("the login of a task in Consul: %v, want 403", err)
			}
		})
	}
}

// checkRead: a read succeeded, or the store refused it.
func checkRead(t *testing.T, what string, err error, may bool) {
	t.Helper()
	var ofVault *vaultapi.ResponseError
	var ofNomad nomadapi.UnexpectedResponseError
	refused := errors.As(err, &ofVault) && ofVault.StatusCode == http.StatusForbidden || errors.As(err, &ofNomad) && ofNomad.StatusCode() == http.StatusForbidden
	if may && err != nil || !may && !refused {
		t.Errorf("%s: got %v, want that it may: %t", what, err, may)
	}
}

// checkOwnIdentity: an engine's identity reads the variable of its own job and the provider
// keys, and nothing else.
func checkOwnIdentity(t *testing.T, s *Stack) {
	root, err := nomadIn(s, s.Namespace, s.lock.nomadRoot)
	if err != nil {
		t.Fatal(err)
	}
	const adminKey = "nomad/jobs/orch" // the variable of nomad-jobs/orch.nomad.hcl
	for path, namespace := range map[string]string{"nomad/jobs/engine-self": s.Namespace, "nomad/jobs/engine-other": s.Namespace, adminKey: s.Namespace, "elsewhere": s.Namespace} {
		v := &nomadapi.Variable{Namespace: namespace, Path: path, Items: nomadapi.VariableItems{"key_hash": "h"}}
		if _, _, err := root.Variables().Create(v, &nomadapi.WriteOptions{Namespace: namespace}); err != nil {
			t.Fatal(err)
		}
	}
	v := &nomadapi.Variable{Namespace: "default", Path: adminKey, Items: nomadapi.VariableItems{"ORCH_ADMIN_KEY": "k"}}
	if _, _, err := root.Variables().Create(v, &nomadapi.WriteOptions{Namespace: "default"}); err != nil {
		t.Fatal(err)
	}
	other := runIdentified(t, s, s.Namespace, "engine-other")
	is := runIdentified(t, s, s.Namespace, "engine-self")
	if other.nomad == is.nomad {
		t.Fatal("two engines have one identity")
	}
	nomad, err := nomadIn(s, s.Namespace, is.nomad)
	if err != nil {
		t.Fatal(err)
	}
	variable := func(path, namespace string) error {
		_, _, err := nomad.Variables().Read(path, &nomadapi.QueryOptions{Namespace: namespace})
		return err
	}
	checkRead(t, "its own variable", variable("nomad/jobs/engine-self", s.Namespace), true)
	checkRead(t, "another engine's variable", variable("nomad/jobs/engine-other", s.Namespace), false)
	checkRead(t, "another variable", variable("elsewhere", s.Namespace), false)
	checkRead(t, "the admin key in its own namespace", variable(adminKey, s.Namespace), false)
	checkRead(t, "the admin key", variable(adminKey, "default"), false)
	list, _, err := nomad.Variables().List(nil)
	if err != nil || len(list) != 1 || list[0].Path != "nomad/jobs/engine-self" {
		t.Errorf("it lists the variables %v (%v), want its own", list, err)
	}
	_, _, err = nomad.Variables().Update(&nomadapi.Variable{Path: "nomad/jobs/engine-self", Items: nomadapi.VariableItems{"key_hash": "mine"}}, nil)
	checkRead(t, "a write of its own variable", err, false)
	_, _, err = nomad.Jobs().List(nil)
	checkRead(t, "the list of jobs", err, false)
	_, _, err = nomad.Jobs().Info("engine-other", nil)
	checkRead(t, "another engine's job", err, false)
	_, _, err = nomad.Jobs().Register(rawExecJob("engine-self", "id"), nil)
	checkRead(t, "a change of its own job", err, false)
	_, _, err = nomad.Nodes().List(nil)
	checkRead(t, "the list of nodes", err, false)
	_, _, err = nomad.ACLTokens().List(nil)
	checkRead(t, "the list of tokens", err, false)

	vault, err := s.vaultClient("")
	if err != nil {
		t.Fatal(err)
	}
	login, err := vault.Logical().WriteWithContext(t.Context(), "auth/jwt-nomad/login", map[string]any{"role": "nomad-workloads", "jwt": is.vault})
	if err != nil {
		t.Fatal(err)
	}
	vault.SetToken(login.Auth.ClientToken)
	for path, may := range map[string]bool{
		"orch/data/engine-env": true, "orch/data/engines/self": false, "orch/metadata/engines/self": false,
		"orch/data/deployment": false, "orch/data/products/p": false, "orch/metadata/engine-env": false, "sys/mounts": false,
	} {
		_, err := vault.Logical().ReadWithContext(t.Context(), path)
		checkRead(t, path, err, may)
	}
	_, err = vault.Logical().WriteWithContext(t.Context(), "orch/data/engine-env", map[string]any{"data": map[string]any{"LLM_API_KEY": "mine"}})
	checkRead(t, "a write of the provider keys", err, false)
}
