package devstack

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// TestLocked: the agents of a locked stack refuse unknown callers, the service may do only
// what its shipped policies allow, and engines have their own identities. All of this also
// holds after the agents were killed and restarted.
func TestLocked(t *testing.T) {
	s := startStack(t, Config{Locked: true, ExtraClients: 1})
	client, err := nomadClient(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Strangers", func(t *testing.T) { checkStrangers(t, s) })
	t.Run("OrchToken", func(t *testing.T) { checkOrchToken(t, s) })
	t.Run("OrchNomad", func(t *testing.T) { checkOrchNomad(t, s) })
	t.Run("OrchConsul", func(t *testing.T) { checkOrchConsul(t, s) })
	t.Run("WorkloadIdentity", func(t *testing.T) { checkWorkloadIdentity(t, s, client) })
	t.Run("ForeignIdentity", func(t *testing.T) { checkForeignIdentity(t, s, client, "stranger") })
	t.Run("ForeignNamespace", func(t *testing.T) {
		cfg := s.NomadConfig()
		cfg.Namespace, cfg.HttpClient = "default", s.httpClient()
		other, err := nomadapi.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		checkForeignIdentity(t, s, other, "engine-elsewhere")
	})
	t.Run("ServiceIdentity", func(t *testing.T) { checkServiceIdentity(t, s, client, "engine-service") })
	t.Run("Thefts", func(t *testing.T) { checkThefts(t, s) })
	t.Run("OwnIdentity", func(t *testing.T) { checkOwnIdentity(t, s) })
	t.Run("Certificates", func(t *testing.T) { checkCertificates(t, s) })
	t.Run("OtherDrivers", func(t *testing.T) { checkDrivers(t, s) })
	for _, c := range []Component{Consul, Nomad, Vault} {
		if err := s.Kill(c); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("AfterRestart", func(t *testing.T) {
		checkOrchNomad(t, s)
		checkOrchConsul(t, s)
		checkServiceIdentity(t, s, client, "engine-later")
	})
}

// checkDrivers: in the namespace of engines even the service's and the operator's token run
// jobs only with the drivers that the shipped file names.
func checkDrivers(t *testing.T, s *Stack) {
	for who, token := range map[string]string{"the service": s.Orch().NomadToken, "the operator": s.lock.nomadRoot} {
		client, err := nomadIn(s, s.Namespace, token)
		if err != nil {
			t.Fatal(err)
		}
		for driver, allowed := range map[string]bool{"raw_exec": true, "docker": true, "exec": false, "java": false, "qemu": false} {
			task := nomadapi.NewTask("task", driver).SetConfig("command", "/bin/true").SetConfig("image", "none:1")
			name := "engine-driver-" + driver
			job := nomadapi.NewBatchJob(name, name, "global", 50).AddTaskGroup(nomadapi.NewTaskGroup("group", 0).AddTask(task))
			_, _, err := client.Jobs().Register(job, nil)
			if allowed && err != nil || !allowed && (err == nil || !strings.Contains(err.Error(), "not allowed in namespace")) {
				t.Errorf("%s registers a job with the driver %s: %v, want that it may: %t", who, driver, err, allowed)
			}
			if _, _, err := client.Jobs().Deregister(name, true, nil); err != nil && allowed {
				t.Error(err)
			}
		}
	}
	elsewhere, err := nomadIn(s, "default", s.lock.nomadRoot)
	if err != nil {
		t.Fatal(err)
	}
	job := nomadapi.NewBatchJob("other", "other", "global", 50).AddTaskGroup(nomadapi.NewTaskGroup("group", 0).AddTask(nomadapi.NewTask("task", "exec").SetConfig("command", "/bin/true")))
	if _, _, err := elsewhere.Jobs().Register(job, nil); err != nil {
		t.Errorf("a job with the driver exec in the namespace default: %v", err)
	}
}

// checkStrangers: a caller without a certificate gets no connection, and one without a token
// gets no data. A Nomad client serves the UI and the keys of identities to everybody.
func checkStrangers(t *testing.T, s *Stack) {
	nobody := s.TLS()
	nobody.Certificates = nil
	get := func(as *http.Client, url string) (int, error) {
		resp, err := as.Get(url)
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		return resp.StatusCode, nil
	}
	anonymous := s.httpClient()
	without := s.httpClient()
	without.Transport.(*http.Transport).TLSClientConfig = nobody
	for _, url := range []string{s.NomadAddr + "/v1/jobs", s.ConsulAddr + "/v1/kv/orch/x"} {
		if status, err := get(without, url); err == nil {
			t.Errorf("%s without a certificate: %d, want no connection", url, status)
		}
		if status, err := get(anonymous, url); err != nil || status != http.StatusForbidden && status != http.StatusNotFound {
			t.Errorf("%s without a token: %d, %v, want a refusal", url, status, err)
		}
		if status, err := get(http.DefaultClient, "http"+strings.TrimPrefix(url, "https")); err == nil && status != http.StatusBadRequest {
			t.Errorf("%s without TLS: %d, want a refusal", url, status)
		}
	}
	if status, err := get(without, s.urls[NomadClient(0)]+"/ui/"); err != nil || status != http.StatusOK {
		t.Errorf("Nomad's pages at a client: %d, %v", status, err)
	}
}

// checkOrchNomad: the service's token gives access only to engines.
func checkOrchNomad(t *testing.T, s *Stack) {
	t.Helper()
	cfg := s.NomadConfig()
	cfg.SecretID, cfg.HttpClient = s.Orch().NomadToken, s.httpClient()
	orch, err := nomadapi.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	in := func(namespace string) *nomadapi.QueryOptions { return &nomadapi.QueryOptions{Namespace: namespace} }
	variable := func(path, namespace string) error {
		_, _, err := orch.Variables().Create(&nomadapi.Variable{Namespace: namespace, Path: path, Items: nomadapi.VariableItems{"a": "b"}}, &nomadapi.WriteOptions{Namespace: namespace})
		if err == nil {
			_, err = orch.Variables().Delete(path, &nomadapi.WriteOptions{Namespace: namespace})
		}
		return err
	}
	for name, do := range map[string]func(namespace string) error{
		"list jobs": func(ns string) error { _, _, err := orch.Jobs().List(in(ns)); return err },
		"parse": func(ns string) error {
			_, err := orch.Raw().Write("/v1/jobs/parse", map[string]any{"JobHCL": "job \"j\" {\n  group \"g\" {\n    task \"t\" {\n      driver = \"raw_exec\"\n    }\n  }\n}"}, nil, &nomadapi.WriteOptions{Namespace: ns})
			return err
		},
		"variable": func(ns string) error { return variable("nomad/jobs/engine-x", ns) },
		"list volumes": func(ns string) error {
			_, _, err := orch.HostVolumes().List(&nomadapi.HostVolumeListRequest{}, in(ns))
			return err
		},
	} {
		if err := do(s.Namespace); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Instead of an error, Nomad returns a list without the volumes that a token may not read.
		if err := do("default"); name != "list volumes" && (err == nil || !strings.Contains(err.Error(), "ermission denied")) {
			t.Errorf("%s in another namespace: got %v, want a refusal", name, err)
		}
	}
	if err := variable("nomad/jobs/orch", s.Namespace); err == nil || !strings.Contains(err.Error(), "ermission denied") {
		t.Errorf("the variable of a job that is no engine: got %v, want a refusal", err)
	}
	if _, _, err := orch.Nodes().List(nil); err != nil {
		t.Errorf("list nodes: %v", err)
	}
	if _, _, err := orch.ACLTokens().List(nil); err == nil {
		t.Error("it lists tokens")
	}
}

// checkOrchConsul: the service's token gives access only to its prefix, and the token of
// another deployment only to that deployment's.
func checkOrchConsul(t *testing.T, s *Stack) {
	t.Helper()
	other, err := s.Deployment(t.Context(), "other/", "other")
	if err != nil {
		t.Fatal(err)
	}
	for token, prefix := range map[string]string{s.Orch().ConsulToken: "orch/", other.ConsulToken: "other/"} {
		client, err := consulapi.NewClient(&consulapi.Config{Address: s.ConsulAddr, Token: token, HttpClient: s.httpClient()})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"orch/", "other/", "a/"} {
			_, err := client.KV().Put(&consulapi.KVPair{Key: p + "key"}, nil)
			if (err == nil) != (p == prefix) {
				t.Errorf("a write below %s with the token of %s: %v", p, prefix, err)
			}
		}
		id, _, err := client.Session().Create(&consulapi.SessionEntry{}, nil)
		if err != nil {
			t.Errorf("a session: %v", err)
		}
		if _, err := client.Session().Destroy(id, nil); err != nil {
			t.Errorf("the end of a session: %v", err)
		}
	}
}

// checkServiceIdentity: Nomad registers an engine's service in Consul with the identity of
// the engine.
func checkServiceIdentity(t *testing.T, s *Stack, client *nomadapi.Client, name string) {
	t.Helper()
	up := filepath.Join(t.TempDir(), "up")
	job := rawExecJob(name, "touch "+up+"; exec sleep 12345")
	job.TaskGroups[0].Services = []*nomadapi.Service{{Name: name, Provider: "consul", Address: loopback}}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	consul, err := s.consulClient(s.ConsulAddr)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, err := os.Stat(up); err != nil {
			return err.Error()
		}
		found, _, err := consul.Catalog().Service(name, "", nil)
		if err != nil || len(found) != 1 {
			return "the service is not in the catalog"
		}
		return ""
	})
	tokens, _, err := consul.ACL().TokenListFiltered(consulapi.ACLTokenFilterOptions{AuthMethod: workloadsAuth}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		for _, service := range token.ServiceIdentities {
			if service.ServiceName == name {
				return
			}
		}
	}
	t.Errorf("no token is of the service %s alone: %d tokens", name, len(tokens))
}
