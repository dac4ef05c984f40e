package cli

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

const (
	orchJob  = "orch"
	orchFile = harness.Repository + "/nomad-jobs/orch.nomad.hcl"
	orchVar  = "nomad/jobs/" + orchJob
)

// TestOrchJob runs the service with the job file for operators: its secrets come from the
// Nomad variable, an update to a Vault token from its workload identity replaces the
// replica, and engines are not affected.
func TestOrchJob(t *testing.T) {
	t.Parallel()
	cli := nomadCLI{t}
	nc, cc := apiClients(t)
	addr := loopbackAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	// A key that must pass unchanged through the template and the env file.
	admin := &client.Client{BaseURL: "http://" + addr, AdminKey: `a "key" <with> $what & a \file#mangles, ` + rand.Text()}
	secret := map[string]string{"ORCH_ADMIN_KEY": admin.AdminKey, "LLM_API_KEY": harness.ProviderKey}
	args := orchJobArgs(t, port, secret)

	cli.run(nil, append([]string{"job", "validate"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			logReplicas(t, nc)
		}
		cli.run(nil, "job", "stop", "-purge", "-detach", orchJob)
		cli.run(nil, "var", "purge", orchVar)
	})
	cli.putSecrets(secret)
	cli.run(nil, append([]string{"job", "run", "-detach"}, args...)...)
	harness.Eventually(t, "the service is ready", func() error { return admin.Ready(t.Context()) })

	p, err := admin.RegisterProduct(t.Context(), "orch-job", "Product of a service in Nomad", nil)
	if err != nil {
		t.Fatal(err)
	}
	product := &client.Client{BaseURL: admin.BaseURL, PlatformKey: p.PlatformAPIKey}
	e, err := product.Provision(t.Context(), "user-1", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the update")

	t.Run("ConsulKnowsIt", func(t *testing.T) {
		harness.Eventually(t, "the service passes its checks", func() error {
			list, _, err := cc.Health().Service(orchJob, "", true, nil)
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%d instances, %w", len(list), err)
			}
			return nil
		})
	})
	t.Run("NoSecretInTheJob", func(t *testing.T) {
		job := cli.run(nil, "job", "inspect", orchJob)
		for name, value := range secret {
			if strings.Contains(job, value) {
				t.Errorf("the job contains %s", name)
			}
		}
	})
	t.Run("DrainsLongerThanTheLongestCall", func(t *testing.T) {
		job, _, err := nc.Jobs().Info(orchJob, nil)
		if err != nil {
			t.Fatal(err)
		}
		replica := harness.StartService(t, harness.Shared, nil)
		if got, want := *job.TaskGroups[0].Tasks[0].KillTimeout, replica.Scheduler.LongestOperation(); got <= want {
			t.Errorf("kill_timeout is %s, the longest operation takes %s", got, want)
		}
	})
	t.Run("NewSecret", func(t *testing.T) {
		job, _, err := nc.Jobs().Info(orchJob, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, template := range job.TaskGroups[0].Tasks[0].Templates {
			if mode := *template.ChangeMode; mode == "restart" {
				t.Errorf("a change of %s restarts all replicas without regard to each other", *template.DestPath)
			}
		}
		if n := *job.TaskGroups[0].Update.MaxParallel; n != 1 {
			t.Errorf("an update replaces %d replicas at a time", n)
		}
		first := runningAlloc(t, nc, "")
		old := *admin
		admin.AdminKey = "the next key, " + rand.Text()
		secret["ORCH_ADMIN_KEY"] = admin.AdminKey
		cli.putSecrets(secret)
		cli.run(nil, append([]string{"job", "run", "-detach", "-var=generation=2"}, args...)...)
		harness.Eventually(t, "the next generation serves", func() error {
			if runningAlloc(t, nc, first) == "" { // as Nomad knows it, a moment later
				return fmt.Errorf("no allocation but %s runs", first)
			}
			return harness.ErrOf(admin.Products(t.Context()))
		})
		harness.WantCode(t, harness.ErrOf(old.Products(t.Context())), 401, "INVALID_ADMIN_KEY")
		a, _, err := nc.Allocations().Info(first, nil)
		if err != nil || a.TaskStates[orchJob].Restarts != 0 {
			t.Errorf("the first replica was restarted: %+v, %v", a.TaskStates[orchJob], err)
		}
	})
	t.Run("Update", func(t *testing.T) {
		first := runningAlloc(t, nc, "")
		makeVaultRole(t)
		delete(secret, "VAULT_TOKEN") // otherwise the restart would prove nothing
		cli.putSecrets(secret)
		cli.run(nil, append([]string{"job", "run", "-detach", "-var=generation=2", "-var=vault_role=" + orchJob}, args...)...)
		harness.Eventually(t, "another replica is ready", func() error {
			if id := runningAlloc(t, nc, first); id == "" {
				return fmt.Errorf("no allocation but %s runs", first)
			}
			return admin.Ready(t.Context())
		})
		if code := exitCode(t, nc, first); code != 0 {
			t.Errorf("the replaced replica ended with code %d", code)
		}
		if err := harness.Export(t, e, e.APIKey).Knows("before the update"); err != nil {
			t.Error(err)
		}
		got, err := product.Engine(t.Context(), "user-1")
		if err != nil || got.APIKey != e.APIKey || got.URL != e.URL {
			t.Fatalf("after the update GET returns %+v, %v", got, err)
		}
		if _, err := product.Provision(t.Context(), "user-2", ""); err != nil { // writes to Vault
			t.Error(err)
		}
	})

	for _, user := range []string{"user-1", "user-2"} {
		if _, err := product.Destroy(t.Context(), user); err != nil {
			t.Error(err)
		}
	}
	last := runningAlloc(t, nc, "")
	cli.run(nil, "job", "stop", "-detach", orchJob)
	harness.Eventually(t, "the last replica ends", func() error {
		if runningAlloc(t, nc, "") != "" {
			return fmt.Errorf("%s runs", last)
		}
		return nil
	})
	if code := exitCode(t, nc, last); code != 0 {
		t.Errorf("the stopped replica ended with code %d", code)
	}
}

// orchJobArgs returns the arguments of `nomad job run` for the service of this checkout, with
// raw_exec for the service and its engines. It adds the service's tokens to secret.
func orchJobArgs(t *testing.T, port string, secret map[string]string) []string {
	t.Helper()
	binary, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	prefix := "t-" + strings.ToLower(rand.Text()[:10]) + "/"
	access, err := harness.Shared.Deployment(t.Context(), prefix, "orch")
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{
		"ORCH_ENGINE_DRIVER": "raw_exec", "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": harness.BinDir,
		"ORCH_ENGINE_CPU_MHZ": "10", "ORCH_ENGINE_MEMORY_MB": "32", "ORCH_VOLUME_POOL": "2", "ORCH_DRAIN_DELAY_S": "0",
		"ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY", "ORCH_CONSUL_PREFIX": prefix, "ORCH_NOMAD_NAMESPACE": harness.Shared.Namespace,
		"ORCH_ALLOW_OPEN_NOMAD": strconv.FormatBool(access.Open()),
	}
	for _, variable := range access.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasSuffix(name, "_TOKEN") {
			secret[name] = value
		} else {
			vars[name] = value
		}
	}
	settings, err := json.Marshal(vars)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"-var=driver=raw_exec", "-var=binary=" + binary, "-var=port=" + port, "-var=settings=" + string(settings),
		"-var=nomad_addr=" + harness.Shared.NomadAddr, "-var=consul_addr=" + harness.Shared.ConsulAddr, "-var=vault_addr=" + harness.Shared.VaultAddr,
		"-var=cpu_mhz=50", "-var=memory_mb=64", orchFile,
	}
}

// nomadCLI runs the nomad command against the shared stack.
type nomadCLI struct{ t *testing.T }

func (c nomadCLI) run(stdin []byte, args ...string) string {
	c.t.Helper()
	out, err := c.try(stdin, args...)
	if err != nil {
		c.t.Fatalf("nomad %s: %v\n%s", args[:min(len(args), 2)], err, out)
	}
	return out
}

func (c nomadCLI) try(stdin []byte, args ...string) (string, error) {
	cmd := exec.Command(harness.Binaries.Nomad, args...)
	cmd.Env = append(append(os.Environ(), "NOMAD_TOKEN="), harness.Shared.Operator().Environ()...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// putSecrets replaces the job's variable through standard input, because everybody on the
// machine can see command lines.
func (c nomadCLI) putSecrets(items map[string]string) {
	c.t.Helper()
	text, err := json.Marshal(map[string]any{"Items": items})
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(text, "var", "put", "-force", "-in=json", orchVar, "-")
}

// apiClients are an operator's, in the namespace of the job.
func apiClients(t *testing.T) (*nomad.Client, *consul.Client) {
	t.Helper()
	cfg := harness.Shared.NomadConfig()
	cfg.Namespace = nomad.DefaultNamespace
	nc, err := nomad.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := consul.NewClient(harness.Shared.ConsulConfig())
	if err != nil {
		t.Fatal(err)
	}
	return nc, cc
}

// loopbackAddr returns an unused loopback address.
func loopbackAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// makeVaultRole allows the workload identity of the job orch, and of no other job, to get a
// token with the service's policy.
func makeVaultRole(t *testing.T) {
	t.Helper()
	vc, err := harness.Shared.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	_, err = vc.Logical().WriteWithContext(t.Context(), "auth/jwt-nomad/role/"+orchJob, map[string]any{
		"role_type": "jwt", "bound_audiences": []string{"vault.io"}, "bound_claims": map[string]string{"nomad_namespace": nomad.DefaultNamespace, "nomad_job_id": orchJob},
		"user_claim": "/nomad_job_id", "user_claim_json_pointer": true,
		"token_type": "service", "token_policies": []string{"orch"}, "token_no_default_policy": true, "token_period": "30m",
	})
	if err != nil {
		t.Fatal(err)
	}
}

// runningAlloc returns the job's running allocation other than but; empty: none.
func runningAlloc(t *testing.T, nc *nomad.Client, but string) string {
	t.Helper()
	list, _, err := nc.Jobs().Allocations(orchJob, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.ClientStatus == nomad.AllocClientStatusRunning && a.ID != but {
			return a.ID
		}
	}
	return ""
}

// logReplicas logs what happened to each allocation, after a failed test.
func logReplicas(t *testing.T, nc *nomad.Client) {
	list, _, err := nc.Jobs().Allocations(orchJob, true, nil)
	if err != nil {
		t.Log(err)
	}
	for _, a := range list {
		for _, ev := range a.TaskStates[orchJob].Events {
			t.Logf("%s  %s: %s", a.ID, ev.Type, ev.DisplayMessage)
		}
		logs, _ := nomadCLI{t}.try(nil, "alloc", "logs", "-stderr", "-n", "40", "-tail", a.ID)
		t.Log(logs)
	}
}

// exitCode returns the exit code of an ended allocation's task.
func exitCode(t *testing.T, nc *nomad.Client, alloc string) int {
	t.Helper()
	code := -1
	harness.Eventually(t, "the task has ended", func() error {
		a, _, err := nc.Allocations().Info(alloc, nil)
		if err != nil {
			return err
		}
		for _, ev := range a.TaskStates[orchJob].Events {
			if ev.Type == nomad.TaskTerminated {
				code = ev.ExitCode
			}
		}
		if code < 0 {
			return fmt.Errorf("no exit code yet")
		}
		return nil
	})
	return code
}
