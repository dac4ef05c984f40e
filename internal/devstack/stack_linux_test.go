package devstack

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
)

// Two stacks run at the same time, one of them with a second node and few ports.
func TestSideBySide(t *testing.T) {
	catalog := t.TempDir()
	one := startStack(t, Config{CatalogDir: catalog, MemoryMB: 2000, CPUMHz: 3000})
	two := startStack(t, Config{ExtraClients: 1, DynamicPorts: [2]int{0, 3}})

	if got, want := two.DynamicPorts[1]-two.DynamicPorts[0]+1, 3; got != want {
		t.Errorf("second stack has %d dynamic ports, want %d", got, want)
	}
	if overlap(one.DynamicPorts, two.DynamicPorts) {
		t.Errorf("dynamic ports %v and %v overlap", one.DynamicPorts, two.DynamicPorts)
	}
	for _, tc := range []struct {
		stack *Stack
		nodes int
	}{{one, 1}, {two, 2}} {
		client, err := nomadClient(tc.stack)
		if err != nil {
			t.Fatal(err)
		}
		nodes, _, err := client.Nodes().List(nil)
		if err != nil || len(nodes) != tc.nodes {
			t.Errorf("got %d nodes (%v), want %d", len(nodes), err, tc.nodes)
		}
	}
	client, err := nomadClient(one)
	if err != nil {
		t.Fatal(err)
	}
	nodes, _, err := client.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	node, _, err := client.Nodes().Info(nodes[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if vol := node.HostVolumes["catalog"]; vol == nil || vol.Path != catalog || !vol.ReadOnly {
		t.Errorf("host volume catalog is %+v, want %s read-only", vol, catalog)
	}
	if got := node.NodeResources.Memory.MemoryMB; got != 2000 {
		t.Errorf("node memory is %d MB, want 2000", got)
	}
	if got := node.NodeResources.Cpu.CpuShares; got != 3000 {
		t.Errorf("node CPU is %d MHz, want 3000", got)
	}

	t.Run("OrchToken", func(t *testing.T) { checkOrchToken(t, one) })
	t.Run("WorkloadIdentity", func(t *testing.T) { checkWorkloadIdentity(t, one, client) })
	t.Run("ForeignIdentity", func(t *testing.T) { checkForeignIdentity(t, one, client, "stranger") })
	t.Run("ErrDirInUse", func(t *testing.T) {
		_, err := Start(t.Context(), Config{Dir: one.Dir, Binaries: one.cfg.Binaries})
		wantError(t, err, "a stack is running in "+one.Dir)
	})
	t.Run("ErrPortTaken", func(t *testing.T) {
		_, text, _ := strings.Cut(strings.TrimPrefix(one.ConsulAddr, "http://"), ":")
		port, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Start(t.Context(), Config{Ports: Ports{Consul: port}, Binaries: one.cfg.Binaries})
		wantError(t, err, "which consul needs, is in use", EnvConsulPort)
	})
}

func overlap(a, b [2]int) bool { return a[0] <= b[1] && b[0] <= a[1] }

// checkOrchToken: the service's token allows only what the service does.
func checkOrchToken(t *testing.T, s *Stack) {
	client, err := s.vaultClient(s.VaultOrchToken)
	if err != nil {
		t.Fatal(err)
	}
	l, ctx := client.Logical(), t.Context()
	data := func(kv ...string) map[string]any {
		return map[string]any{"data": map[string]any{kv[0]: kv[1]}, "options": map[string]any{"cas": 0}}
	}
	allowed := map[string]func() (*vaultapi.Secret, error){
		"1 write key": func() (*vaultapi.Secret, error) {
			return l.WriteWithContext(ctx, "orch/data/engines/e1", data("key", "k"))
		},
		"2 read key":  func() (*vaultapi.Secret, error) { return l.ReadWithContext(ctx, "orch/data/engines/e1") },
		"3 list keys": func() (*vaultapi.Secret, error) { return l.ListWithContext(ctx, "orch/metadata/engines") },
		"4 destroy": func() (*vaultapi.Secret, error) {
			return l.WriteWithContext(ctx, "orch/destroy/engines/e1", map[string]any{"versions": []int{1}})
		},
		"5 delete": func() (*vaultapi.Secret, error) { return l.DeleteWithContext(ctx, "orch/metadata/engines/e1") },
		"6 provider keys": func() (*vaultapi.Secret, error) {
			return l.WriteWithContext(ctx, "orch/data/engine-env", data("LLM_API_KEY", "llm-1"))
		},
		"7 lookup-self": func() (*vaultapi.Secret, error) { return l.ReadWithContext(ctx, "auth/token/lookup-self") },
		"8 renew-self":  func() (*vaultapi.Secret, error) { return client.Auth().Token().RenewSelfWithContext(ctx, 0) },
	}
	for _, name := range sortedKeys(allowed) {
		if _, err := allowed[name](); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{"orch/data/other", "sys/mounts", "auth/token/accessors", "orch/metadata/engine-env"} {
		if _, err := l.ReadWithContext(ctx, path); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("reading %s: got error %v, want permission denied", path, err)
		}
	}
}

// checkWorkloadIdentity: a task reads the provider keys with its own identity, but not an
// engine's key, and does not get the developer's environment.
func checkWorkloadIdentity(t *testing.T, s *Stack, client *nomadapi.Client) {
	t.Setenv("LLM_API_KEY", "from-the-shell")
	out := filepath.Join(t.TempDir(), "out")
	job := rawExecJob("engine-identity", `{ cat local/env; env | grep -c from-the-shell; } > `+out+`.tmp; mv `+out+`.tmp `+out+`; exec sleep 12345`)
	task := job.TaskGroups[0].Tasks[0]
	task.Vault = &nomadapi.Vault{ChangeMode: ptr("noop")}
	task.Templates = []*nomadapi.Template{{
		EmbeddedTmpl: ptr(`key={{with secret "orch/data/engine-env"}}{{.Data.data.LLM_API_KEY}}{{end}}` + "\n"),
		DestPath:     ptr("local/env"), Once: ptr(true),
	}}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		text, err := os.ReadFile(out)
		if err != nil {
			return err.Error()
		}
		if want := "key=llm-1\n0\n"; string(text) != want {
			t.Fatalf("the task saw %q, want %q", text, want)
		}
		return ""
	})
}

// checkForeignIdentity: a job that is not an engine's gets no provider keys with the same role.
func checkForeignIdentity(t *testing.T, s *Stack, client *nomadapi.Client, name string) {
	out := filepath.Join(t.TempDir(), "out")
	job := rawExecJob(name, `cp local/env `+out+`; exec sleep 12345`)
	task := job.TaskGroups[0].Tasks[0]
	task.Vault = &nomadapi.Vault{ChangeMode: ptr("noop")}
	task.Templates = []*nomadapi.Template{{
		EmbeddedTmpl: ptr(`{{with secret "orch/data/engine-env"}}{{.Data.data.LLM_API_KEY}}{{end}}` + "\n"),
		DestPath:     ptr("local/env"), Once: ptr(true),
	}}
	if _, _, err := client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if text, err := os.ReadFile(out); err == nil {
			t.Fatalf("a foreign job got %q", text)
		}
		allocs, _, err := client.Jobs().Allocations(name, true, nil)
		if err != nil {
			return err.Error()
		}
		for _, a := range allocs {
			for _, state := range a.TaskStates {
				for _, e := range state.Events {
					if strings.Contains(e.DisplayMessage, "does not match any associated bound claim values") {
						return ""
					}
				}
			}
		}
		return "the foreign job was not refused yet"
	})
}

// A killed agent keeps its state over a restart, and tasks keep running meanwhile, wherever
// the databases are.
func TestKillAndRestart(t *testing.T) {
	t.Run("OnDisk", func(t *testing.T) { testKillAndRestart(t, Config{}) })
	t.Run("InMemory", func(t *testing.T) { testKillAndRestart(t, Config{InMemory: true}) })
}

func testKillAndRestart(t *testing.T, cfg Config) {
	s := startStack(t, cfg)
	ctx := t.Context()
	if memory := strings.HasPrefix(s.DataDir(Consul), shared); memory != (cfg.InMemory && memoryDir("any") != "") {
		t.Errorf("the databases are in %s", s.DataDir(Consul))
	}
	for c, file := range map[Component]string{
		Consul: "raft", Vault: "data/raft/raft.db", NomadServer: "server/raft/raft.db", NomadClient(0): "client/state.db",
	} {
		if _, err := os.Stat(filepath.Join(s.DataDir(c), file)); err != nil {
			t.Errorf("the database of %s: %v", c, err)
		}
	}

	t.Run("Nomad", func(t *testing.T) {
		pid, err := runSleeper(ctx, s, "sleeper")
		if err != nil {
			t.Fatal(err)
		}
		killRestart(t, s, Nomad, s.NomadAddr+"/v1/agent/health")
		if !alive(pid) || sleeperPID(s.id, "sleeper") != pid {
			t.Errorf("the task's process is %d, want still %d", sleeperPID(s.id, "sleeper"), pid)
		}
		client, err := nomadClient(s)
		if err != nil {
			t.Fatal(err)
		}
		allocs, _, err := client.Jobs().Allocations("sleeper", true, nil)
		if err != nil || len(allocs) != 1 {
			t.Errorf("got %d allocations (%v), want the one from before", len(allocs), err)
		}
	})
	t.Run("Consul", func(t *testing.T) {
		client, err := consulapi.NewClient(&consulapi.Config{Address: s.ConsulAddr, HttpClient: httpClient()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.KV().Put(&consulapi.KVPair{Key: "kept", Value: []byte("yes")}, nil); err != nil {
			t.Fatal(err)
		}
		killRestart(t, s, Consul, s.ConsulAddr+"/v1/status/leader")
		pair, _, err := client.KV().Get("kept", nil)
		if err != nil || pair == nil || string(pair.Value) != "yes" {
			t.Errorf("KV key after the restart: %v (%v), want yes", pair, err)
		}
	})
	t.Run("Vault", func(t *testing.T) {
		client, err := s.vaultClient(s.VaultOrchToken)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.KVv2("orch").Put(ctx, "engines/e1", map[string]any{"key": "k"}); err != nil {
			t.Fatal(err)
		}
		killRestart(t, s, Vault, s.VaultAddr+"/v1/sys/health")
		secret, err := client.KVv2("orch").Get(ctx, "engines/e1")
		if err != nil || secret.Data["key"] != "k" {
			t.Errorf("secret after the restart: %v (%v), want k", secret, err)
		}
	})
	t.Run("PauseAndStop", func(t *testing.T) {
		if err := s.Pause(Nomad); err != nil {
			t.Fatal(err)
		}
		if reachable(ctx, s.NomadAddr+"/v1/agent/health") {
			t.Error("a paused Nomad responds")
		}
		if err := s.Resume(Nomad); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if !reachable(ctx, s.NomadAddr+"/v1/agent/health") {
				return "a resumed Nomad does not answer"
			}
			return ""
		})
		if err := s.Pause(Consul); err != nil { // Stop must also stop a paused agent
			t.Fatal(err)
		}
	})
}

func killRestart(t *testing.T, s *Stack, c Component, url string) {
	t.Helper()
	if err := s.Kill(c); err != nil {
		t.Fatal(err)
	}
	if reachable(t.Context(), url) {
		t.Errorf("%s responds after Kill", c)
	}
	began := time.Now()
	if err := s.Restart(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s was back after %s", c, time.Since(began).Round(time.Millisecond))
	if !reachable(t.Context(), url) {
		t.Errorf("%s does not respond after Restart", c)
	}
}

func reachable(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := httpClient().Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
