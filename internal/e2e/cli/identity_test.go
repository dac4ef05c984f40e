package cli

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/deploy"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestOrchJobByIdentity runs two replicas with the job file for operators on locked agents,
// without a token: they use their workload identities in Nomad, Consul and Vault, with the
// policies, the binding rule and the role in deploy/. A job of the same name in another
// namespace gets nothing. An update to another version of the service, which runs in
// containers, fails no call.
func TestOrchJobByIdentity(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	database := harness.Postgres.Database(t)
	stack := harness.OwnStack(t, devstack.Config{Locked: true, DockerSocket: os.Getenv("DOCKER_HOST")})
	n, c := operators(t, stack)
	bindIdentities(t, n, c)
	adminKey := "the-admin-key-" + rand.Text()
	variable := &nomad.Variable{Namespace: nomad.DefaultNamespace, Path: orchVar, Items: nomad.VariableItems{"ORCH_ADMIN_KEY": adminKey, "ORCH_DATABASE_URL": database}}
	if _, _, err := n.Variables().Create(variable, &nomad.WriteOptions{Namespace: nomad.DefaultNamespace}); err != nil {
		t.Fatal(err)
	}
	putAgentsTLS(t, stack, n)
	binary, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	runByIdentity(t, stack, "-var=driver=raw_exec", "-var=binary="+binary)
	t.Cleanup(func() {
		if t.Failed() {
			logAllocs(t, stack, n)
		}
		if _, _, err := n.Jobs().Deregister(orchJob, true, &nomad.WriteOptions{Namespace: nomad.DefaultNamespace}); err != nil {
			t.Error(err)
		}
	})

	var replicas []*client.Client
	harness.Eventually(t, "two replicas are ready", func() error {
		list, _, err := c.Health().Service(orchJob, "", true, nil)
		if err != nil || len(list) != 2 {
			return fmt.Errorf("%d pass, %w", len(list), err)
		}
		replicas = nil
		for _, s := range list {
			replicas = append(replicas, &client.Client{BaseURL: "http://" + s.Service.Address + ":" + strconv.Itoa(s.Service.Port), AdminKey: adminKey})
		}
		return nil
	})
	harness.Eventually(t, "one replica leads", func() error {
		var roles []string
		for _, r := range replicas {
			h, err := r.Health(ctx)
			if err != nil || h.Status != "ok" {
				return fmt.Errorf("%+v, %w", h, err)
			}
			roles = append(roles, h.Role)
		}
		if slices.Sort(roles); !slices.Equal(roles, []string{"follower", "leader"}) {
			return fmt.Errorf("the roles are %v", roles)
		}
		return nil
	})
	p, err := replicas[0].RegisterProduct(ctx, "by-identity", "By identity", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range replicas {
		r.PlatformKey, replicas[1-i].PlatformKey = p.PlatformAPIKey, p.PlatformAPIKey
		user := fmt.Sprintf("user-%d", i)
		if _, err := r.Provision(ctx, user, ""); err != nil {
			t.Fatal(err)
		}
		a, err := replicas[1-i].Admit(ctx, user, client.AdmitOptions{})
		if err != nil || !a.Admitted {
			t.Errorf("an admit by the other replica: %+v, %v", a, err)
		}
		if err := harness.ErrOf(r.RotateKey(ctx, user)); err != nil {
			t.Error(err)
		}
		if _, err := replicas[1-i].Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
	t.Run("Renewed", func(t *testing.T) { checkRenewed(t, stack, n, replicas[0]) })
	t.Run("NoToken", func(t *testing.T) { checkNoToken(t, stack, n, c) })
	t.Run("Theft", func(t *testing.T) { checkTheft(t, stack, n, c) })
	t.Run("Rolled", func(t *testing.T) { checkRolled(t, stack, n, c, replicas[0]) })
}

// bindIdentities does what docs/install.md says for the service as a Nomad job.
func bindIdentities(t *testing.T, n *nomad.Client, c *consul.Client) {
	t.Helper()
	read := func(file string) string {
		t.Helper()
		b, err := deploy.Policies.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	bound := &nomad.ACLPolicy{Name: "orch-job", Rules: read("nomad/orch.policy.hcl"), JobACL: &nomad.JobACL{Namespace: nomad.DefaultNamespace, JobID: orchJob}}
	if _, err := n.ACLPolicies().Upsert(bound, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ACL().PolicyCreate(&consul.ACLPolicy{Name: "orch", Rules: read("consul/orch.policy.hcl")}, nil); err != nil {
		t.Fatal(err)
	}
	var rule consul.ACLBindingRule
	if err := json.Unmarshal([]byte(read("consul/orch.binding-rule.json")), &rule); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ACL().BindingRuleCreate(&rule, nil); err != nil {
		t.Fatal(err)
	}
}

// putAgentsTLS stores what the replicas need for TLS with the agents.
func putAgentsTLS(t *testing.T, stack *devstack.Stack, n *nomad.Client) {
	t.Helper()
	at, items := stack.Orch(), nomad.VariableItems{}
	for item, file := range map[string]string{"ca": at.CACert, "cert": at.ClientCert, "key": at.ClientKey} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		items[item] = string(b)
	}
	variable := &nomad.Variable{Namespace: nomad.DefaultNamespace, Path: orchVar + "/" + orchJob, Items: items}
	if _, _, err := n.Variables().Create(variable, &nomad.WriteOptions{Namespace: nomad.DefaultNamespace}); err != nil {
		t.Fatal(err)
	}
}

// runByIdentity runs the job with two replicas and without tokens; program says what runs.
func runByIdentity(t *testing.T, stack *devstack.Stack, program ...string) {
	t.Helper()
	vars := map[string]string{
		"ORCH_ENGINE_DRIVER": "raw_exec", "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": harness.BinDir,
		"ORCH_ENGINE_CPU_MHZ": "10", "ORCH_ENGINE_MEMORY_MB": "32", "ORCH_VOLUME_POOL": "2", "ORCH_NOMAD_NAMESPACE": stack.Namespace,
	}
	for _, v := range stack.Orch().Environ() {
		name, value, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "NOMAD_") && !strings.HasSuffix(name, "_TOKEN") && !strings.HasSuffix(name, "_CACERT") && !strings.Contains(name, "_CLIENT_") {
			vars[name] = value
		}
	}
	settings, err := json.Marshal(vars)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"job", "run", "-detach", "-var=agents_tls=mutual", "-var=port=0", "-var=ops_port=0", "-var=count=2", "-var=canary=1", "-var=identity=true", "-var=identity_ttl=" + identityTTL.String(), "-var=vault_role=" + orchJob, "-var=settings=" + string(settings),
		"-var=consul_addr=" + stack.ConsulAddr, "-var=vault_addr=" + stack.VaultAddr, "-var=cpu_mhz=50", "-var=memory_mb=64",
	}
	cmd := exec.CommandContext(t.Context(), harness.Binaries.Nomad, slices.Concat(args, program, []string{orchFile})...)
	cmd.Env = append(os.Environ(), stack.Operator().Environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nomad job run: %v\n%s", err, out)
	}
}

// identityTTL is the lifetime of the replicas' identities in Nomad.
const identityTTL = 3 * time.Minute

// checkRenewed: when the identities with which the replicas started have expired, the service
// still creates engines, and has refused nothing.
func checkRenewed(t *testing.T, stack *devstack.Stack, n *nomad.Client, replica *client.Client) {
	list, _, err := n.Jobs().Allocations(orchJob, true, &nomad.QueryOptions{Namespace: nomad.DefaultNamespace})
	if err != nil || len(list) != 2 {
		t.Fatalf("%d allocations, %v", len(list), err)
	}
	for _, a := range list {
		started := a.TaskStates[orchJob].StartedAt
		harness.Eventually(t, "the first identity of "+a.ID+" has expired", func() error {
			if left := time.Until(started.Add(identityTTL)); left > 0 {
				return fmt.Errorf("%s left", left)
			}
			return nil
		})
		harness.Eventually(t, "the service has read another", func() error {
			if log := allocLog(stack, a.ID); !strings.Contains(log, `"variables":"NOMAD_TOKEN_FILE"`) {
				return fmt.Errorf("its log is\n%s", log)
			}
			return nil
		})
	}
	if _, err := replica.Provision(t.Context(), "renewed", ""); err != nil {
		t.Error(err)
	}
	if _, err := replica.Destroy(t.Context(), "renewed"); err != nil {
		t.Error(err)
	}
	for _, a := range list {
		for line := range strings.Lines(allocLog(stack, a.ID)) {
			if strings.Contains(line, `"@level":"error"`) || strings.Contains(line, "a store refuses") {
				t.Errorf("%s logs %s", a.ID, line)
			}
		}
	}
}

// checkNoToken: neither the job nor the environment of its processes has a token, except the
// one for which Nomad exchanged the task's identity in Consul.
func checkNoToken(t *testing.T, stack *devstack.Stack, n *nomad.Client, c *consul.Client) {
	job, _, err := n.Jobs().Info(orchJob, &nomad.QueryOptions{Namespace: nomad.DefaultNamespace})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]string{"the job": string(text)}
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range processes {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), "ORCH_CONSUL_PREFIX=") && !strings.Contains(string(b), "NOMAD_JOB_ID="+orchJob+"\x00") {
			continue
		}
		if !strings.Contains(string(b), stack.VaultAddr) || !strings.Contains(string(b), "ORCH_ENGINE_IMAGE=") {
			continue // of another stack, or a helper of Nomad's
		}
		found++
		places[file] = string(b)
		for v := range strings.SplitSeq(string(b), "\x00") {
			name, value, _ := strings.Cut(v, "=")
			if !strings.HasSuffix(name, "_TOKEN") || value == "" {
				continue
			}
			self, _, err := c.ACL().TokenReadSelf(&consul.QueryOptions{Token: value})
			if err != nil || self.AuthMethod != "nomad-workloads" {
				t.Errorf("%s has %s, which is not from a workload identity (%v)", file, name, err)
			}
		}
	}
	if found < 2 {
		t.Errorf("only %d processes were found", found)
	}
	for where, text := range places {
		for _, a := range []devstack.Access{stack.Orch(), stack.Operator()} {
			for _, token := range []string{a.NomadToken, a.ConsulToken, a.VaultToken} {
				if strings.Contains(text, token) {
					t.Errorf("%s has a token", where)
				}
			}
		}
	}
}

// checkTheft: the identities of a job with the name of the service, in another namespace, are
// refused by Nomad and Consul. (TestLocked of internal/devstack checks Vault.)
func checkTheft(t *testing.T, stack *devstack.Stack, n *nomad.Client, c *consul.Client) {
	for _, tc := range []struct {
		namespace, job string
	}{{"elsewhere", orchJob}, {stack.Namespace, orchJob}, {nomad.DefaultNamespace, "orch-2"}} {
		t.Run(tc.namespace+"/"+tc.job, func(t *testing.T) {
			if _, err := n.Namespaces().Register(&nomad.Namespace{Name: tc.namespace}, nil); err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "out")
			task := nomad.NewTask(orchJob, "raw_exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{
				"-c", "{ cat secrets/nomad_orch.jwt; echo; cat secrets/nomad_theft.jwt; echo; } > " + out + ".tmp; mv " + out + ".tmp " + out + "; exec sleep 12345",
			})
			task.Resources = &nomad.Resources{CPU: new(50), MemoryMB: new(32)}
			task.Identities = []*nomad.WorkloadIdentity{
				{Name: "orch", Audience: []string{"nomadproject.io"}, File: true, TTL: time.Hour}, {Name: "theft", Audience: []string{"consul.io"}, File: true, TTL: time.Hour},
			}
			job := nomad.NewServiceJob(tc.job, tc.job, "global", 50).AddTaskGroup(nomad.NewTaskGroup(orchJob, 1).AddTask(task))
			w := &nomad.WriteOptions{Namespace: tc.namespace}
			job.Namespace = &tc.namespace
			if _, _, err := n.Jobs().Register(job, w); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if _, _, err := n.Jobs().Deregister(tc.job, true, w); err != nil {
					t.Error(err)
				}
			})
			var jwts []string
			harness.Eventually(t, "the task has its identities", func() error {
				text, err := os.ReadFile(out)
				if jwts = strings.Fields(string(text)); err == nil && len(jwts) != 2 {
					t.Fatalf("it has %d identities", len(jwts))
				}
				return err
			})
			q := &nomad.QueryOptions{Namespace: stack.Namespace, AuthToken: jwts[0]}
			_, _, jobs := n.Jobs().List(q)
			_, _, nodes := n.Nodes().List(q)
			_, _, hash := n.Variables().Read("nomad/jobs/engine-x", q)
			for what, err := range map[string]error{"jobs": jobs, "nodes": nodes, "variables of engines": hash} {
				var refused nomad.UnexpectedResponseError
				if !errors.As(err, &refused) || refused.StatusCode() != http.StatusForbidden {
					t.Errorf("nomad's %s: %v, want 403", what, err)
				}
			}
			_, _, err := c.ACL().Login(&consul.ACLLoginParams{AuthMethod: "nomad-workloads", BearerToken: jwts[1]}, nil)
			var status consul.StatusError
			if !errors.As(err, &status) || status.Code != http.StatusForbidden {
				t.Errorf("the login in Consul: %v, want 403", err)
			}
		})
	}
}

// logAllocs logs what happened to each replica, after a failed test.
func logAllocs(t *testing.T, stack *devstack.Stack, n *nomad.Client) {
	list, _, err := n.Jobs().Allocations(orchJob, true, &nomad.QueryOptions{Namespace: nomad.DefaultNamespace})
	if err != nil {
		t.Log(err)
	}
	for _, a := range list {
		for _, ev := range a.TaskStates[orchJob].Events {
			t.Logf("%s  %s: %s", a.ID, ev.Type, ev.DisplayMessage)
		}
		t.Log(allocLog(stack, a.ID))
	}
}

// allocLog returns what a replica has logged last.
func allocLog(stack *devstack.Stack, alloc string) string {
	cmd := exec.Command(harness.Binaries.Nomad, "alloc", "logs", "-stderr", "-n", "400", "-tail", alloc)
	cmd.Env = append(os.Environ(), stack.Operator().Environ()...)
	out, _ := cmd.CombinedOutput() // an error is in the text
	return string(out)
}
