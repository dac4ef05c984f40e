package deploy_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/deploy"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/service"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// TestPolicies takes every right away that the shipped policies give, one at a time. A call
// of the service fails without it, and its error or log line says what is missing: the
// store, and the endpoint or the right. With the whole policy the same call works. A right
// that no call needs does not belong into the policy.
func TestPolicies(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{Locked: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("Nomad", func(t *testing.T) { proveNomad(t, stack) })
	t.Run("Consul", func(t *testing.T) { proveConsul(t, stack) })
	t.Run("Vault", func(t *testing.T) { proveVault(t, stack) })
}

// need is a call of the service that needs a right, with the words that its error has
// without it.
type need[C any] struct {
	call string
	do   func(C) error
	says string
}

// prove takes the rights of a policy away, one at a time. as returns what makes calls with
// a policy. refused is the kind of the error that a call returns.
func prove[C any](t *testing.T, file string, refused error, as func(t *testing.T, rules string) C, needs map[string][]need[C]) {
	text, err := deploy.Policies.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rights(string(text)) {
		t.Run(r.name, func(t *testing.T) {
			if len(needs[r.name]) == 0 {
				t.Error("no call needs it: remove it from the policy, or add a call to this test")
			}
			for _, n := range needs[r.name] {
				if err := n.do(as(t, string(text))); err != nil {
					t.Errorf("%s with the whole policy: %v", n.call, err)
				}
				err := n.do(as(t, r.without))
				var logged logLine
				if !errors.Is(err, refused) && !errors.As(err, &logged) || !strings.Contains(err.Error(), n.says) {
					t.Errorf("%s: %v, want a refusal that says %q", n.call, err, n.says)
				} else {
					t.Logf("%s: %v", n.call, err)
				}
			}
			delete(needs, r.name)
		})
	}
	for name := range needs {
		t.Errorf("the policy has no right %s", name)
	}
}

// logLine is a line of a call that returns no error but logs it.
type logLine string

func (l logLine) Error() string { return string(l) }

// loop runs a loop of the service until it is done or logs a line that contains works,
// which returns nil, or until it logs a line that contains one of fails.
func loop(run func(context.Context, hclog.Logger), done <-chan struct{}, works string, fails ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	ended := make(chan struct{})
	lines := make(logLines, 1)
	go func() { defer close(ended); run(ctx, hclog.New(&hclog.LoggerOptions{Output: lines})) }()
	defer func() { cancel(); <-ended }()
	for {
		select {
		case <-done:
			return nil
		case line := <-lines:
			if works != "" && strings.Contains(line, works) {
				return nil
			}
			if slices.ContainsFunc(fails, func(word string) bool { return strings.Contains(line, word) }) {
				return logLine(line)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// logLines passes lines on, and drops those that nobody waits for.
type logLines chan string

func (l logLines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	case <-time.After(100 * time.Millisecond):
	}
	return len(b), nil
}

func id() string { return strings.ToLower(rand.Text()) }

// ofNomad is Nomad with a token.
type ofNomad struct {
	*cluster.Cluster
	token string
}

// proveNomad takes rights of the service's policy in Nomad away.
func proveNomad(t *testing.T, stack *devstack.Stack) {
	as := func(t *testing.T, token string) ofNomad {
		t.Helper()
		cfg := stack.NomadConfig()
		cfg.SecretID = token
		client, err := nomad.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return ofNomad{cluster.New(client, stack.Namespace, cluster.Mkdir, hclog.NewNullLogger()), token}
	}
	root := as(t, stack.Operator().NomadToken)
	tokens := 0
	withRules := func(t *testing.T, rules string) ofNomad {
		t.Helper()
		tokens++
		name := fmt.Sprintf("proof-%d", tokens)
		if _, err := root.Client().ACLPolicies().Upsert(&nomad.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
			t.Fatalf("%v\n%s", err, rules)
		}
		token, _, err := root.Client().ACLTokens().Create(&nomad.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return as(t, token.SecretID)
	}

	ctx := t.Context()
	nodes, _, err := root.Client().Nodes().List(nil)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%d nodes, %v", len(nodes), err)
	}
	node := nodes[0].ID
	job := func(volume string) *nomad.Job {
		task := nomad.NewTask("engine", "raw_exec").SetConfig("command", "sleep").SetConfig("args", []string{"12345"})
		group := nomad.NewTaskGroup("engine", 1).AddTask(task)
		if volume != "" {
			group.Volumes = map[string]*nomad.VolumeRequest{"brain": {Name: "brain", Type: "host", Source: volume, AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}}
		}
		name := "engine-" + id()
		j := nomad.NewServiceJob(name, name, "global", 50).AddTaskGroup(group)
		j.Namespace = &stack.Namespace
		return j
	}
	running := job("")
	if _, err := root.Register(ctx, running, 0); err != nil {
		t.Fatal(err)
	}
	var alloc string
	for deadline := time.Now().Add(time.Minute); alloc == ""; time.Sleep(20 * time.Millisecond) {
		allocs, _, err := root.Client().Jobs().Allocations(*running.ID, true, nil)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("the job does not run (%v)", err)
		}
		if len(allocs) > 0 && allocs[0].ClientStatus == nomad.AllocClientStatusRunning {
			alloc = allocs[0].ID
		}
	}
	volume := func() *cluster.Volume {
		v, err := root.RegisterVolume(ctx, "engine-"+id(), node, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	variable := func() string {
		name := "engine-" + id()
		if err := root.PutVariable(ctx, name, &cluster.Variable{KeyHash: "h"}); err != nil {
			t.Fatal(err)
		}
		return name
	}
	register := func(c ofNomad) error {
		_, err := c.Register(ctx, job("engine-"+id()), 0)
		return err
	}
	prove(t, "nomad/orch.policy.hcl", cluster.ErrDenied, withRules, map[string][]need[ofNomad]{
		`namespace "engines" submit-job`: {
			{"register", func(c ofNomad) error { _, err := c.Register(ctx, job(""), 0); return err }, "nomad"},
			{"purge", func(c ofNomad) error { return c.Purge(ctx, "engine-"+id()) }, "nomad"},
		},
		`namespace "engines" list-jobs`: {
			{"jobs", func(c ofNomad) error { _, err := c.Jobs(ctx, "engine-", cluster.Unthrottled); return err }, "nomad"},
			{"ping", func(c ofNomad) error { return c.Ping(ctx) }, "nomad"},
		},
		`namespace "engines" read-job`: {
			{"job", func(c ofNomad) error { _, err := c.Job(ctx, *running.ID); return err }, "nomad"},
			{"jobs", func(c ofNomad) error { _, err := c.Jobs(ctx, "engine-", cluster.Unthrottled); return err }, "nomad"},
			{"allocations", func(c ofNomad) error {
				w := c.Watch(*running.ID)
				defer w.Close()
				return w.Refresh(ctx)
			}, "nomad"},
			{"events", func(c ofNomad) error { return followed(c.Cluster, stack.Namespace) }, "Permission denied"},
		},
		`namespace "engines" alloc-lifecycle`: {
			{"signal", func(c ofNomad) error { return c.Signal(ctx, alloc, "SIGCONT") }, "nomad"},
		},
		`namespace "engines" host-volume-register`: {
			{"register", func(c ofNomad) error {
				_, err := c.RegisterVolume(ctx, "engine-"+id(), node, t.TempDir())
				return err
			}, "nomad"},
			{"create", func(c ofNomad) error { _, err := c.CreateVolume(ctx, "engine-"+id(), node, nil); return err }, "nomad"},
		},
		`namespace "engines" host-volume-delete`: {
			{"delete", func(c ofNomad) error { return c.DeleteVolume(ctx, volume().ID) }, "nomad"},
		},
		`variables path "nomad/jobs/engine-*" write`: {
			{"write", func(c ofNomad) error { return c.PutVariable(ctx, "engine-"+id(), &cluster.Variable{KeyHash: "h"}) }, "nomad"},
		},
		`variables path "nomad/jobs/engine-*" read`: {
			{"read", func(c ofNomad) error { _, err := c.Variable(ctx, variable()); return err }, "nomad"},
		},
		`variables path "nomad/jobs/engine-*" destroy`: {
			{"destroy", func(c ofNomad) error { return c.DeleteVariable(ctx, variable()) }, "nomad"},
		},
		`host_volume "engine-*" write`: {{"register", register, "nomad"}},
		`host_volume "engine-*" read`:  {{"register", register, "nomad"}},
		`node read`: {
			{"node", func(c ofNomad) error { _, err := c.ReadNode(ctx, node); return err }, "nomad"},
			{"volumes of a node", func(c ofNomad) error { _, err := c.NodeVolumes(ctx, node); return err }, "nomad"},
			{"events", func(c ofNomad) error { return followed(c.Cluster, stack.Namespace) }, "Permission denied"},
		},
		`agent read`: {{"start", func(c ofNomad) error { return started(t, stack, c.token) }, `agent { policy`}},
	})
}

// followed follows the event stream until the first lists are read.
func followed(as *cluster.Cluster, namespace string) error {
	var c *cluster.Cluster
	ready := make(chan struct{})
	return loop(func(ctx context.Context, log hclog.Logger) {
		c = cluster.New(as.Client(), namespace, cluster.Mkdir, log)
		go func() {
			select {
			case <-c.Synced():
				close(ready)
			case <-ctx.Done():
			}
		}()
		c.Run(ctx)
	}, ready, "", "[WARN]")
}

// started starts a service until it has checked Nomad's agents, which are too old.
func started(t *testing.T, stack *devstack.Stack, token string) error {
	t.Helper()
	prefix, mount := "proof-"+id()+"/", "proof-"+id()
	access, err := stack.Deployment(t.Context(), prefix, mount)
	if err != nil {
		t.Fatal(err)
	}
	access.NomadToken = token
	cfg, err := config.Load([]string{
		"ORCH_ADDR=127.0.0.1:0", "ORCH_ADMIN_KEY=admin-key-of-the-tests", "ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=engine", "ORCH_ENGINE_BIN_DIR=/no/engines", "ORCH_VOLUME_POOL=0", "ORCH_NOMAD_NAMESPACE=" + stack.Namespace,
		"ORCH_CONSUL_PREFIX=" + prefix, "ORCH_VAULT_MOUNT=" + mount,
	})
	if err != nil {
		t.Fatal(err)
	}
	return loop(func(ctx context.Context, log hclog.Logger) {
		svc, err := service.New(ctx, cfg, service.Clients(access), log)
		if err == nil {
			err = svc.Run(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	}, nil, "recommended=", "capability=")
}

// proveConsul takes rights of the service's policy in Consul away.
func proveConsul(t *testing.T, stack *devstack.Stack) {
	as := func(t *testing.T, token string) *consul.Client {
		t.Helper()
		cfg := stack.ConsulConfig()
		cfg.Token = token
		client, err := consul.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	root := as(t, stack.Operator().ConsulToken)
	withRules := func(t *testing.T, rules string) *registry.Store {
		t.Helper()
		name, token := "proof-"+id(), uuid.NewString()
		if _, _, err := root.ACL().PolicyCreate(&consul.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
			t.Fatalf("%v\n%s", err, rules)
		}
		if _, _, err := root.ACL().TokenCreate(&consul.ACLToken{SecretID: token, Policies: []*consul.ACLTokenPolicyLink{{Name: name}}}, nil); err != nil {
			t.Fatal(err)
		}
		return registry.New(as(t, token), "orch/")
	}
	// An engine's service, as Nomad registers it.
	alloc := uuid.NewString()
	err := root.Agent().ServiceRegister(&consul.AgentServiceRegistration{
		ID: "_nomad-task-" + alloc + "-group-engine", Name: "engine-" + id(), Check: &consul.AgentServiceCheck{TTL: "1h", Status: consul.HealthPassing},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	join := func(s *registry.Store) error {
		joined := make(chan struct{})
		return loop(func(ctx context.Context, log hclog.Logger) {
			r := s.Join(log)
			go func() {
				select {
				case <-r.Joined():
					close(joined)
				case <-ctx.Done():
				}
			}()
			r.Run(ctx)
		}, joined, "", "[WARN]")
	}
	checks := func(s *registry.Store) error {
		passes := make(chan struct{})
		return loop(func(ctx context.Context, log hclog.Logger) {
			c := s.NewChecks(time.Second, log)
			go func() {
				for !c.Passes(alloc) {
					select {
					case <-ctx.Done():
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
				close(passes)
			}()
			c.Run(ctx)
		}, passes, "", "[WARN]")
	}
	prove(t, "consul/orch.policy.hcl", registry.ErrDenied, withRules, map[string][]need[*registry.Store]{
		`key_prefix "orch/" write`: {
			{"write", func(s *registry.Store) error { return s.RequestReconcile(ctx) }, "'key:write'"},
			{"transaction", func(s *registry.Store) error {
				return s.CreateProduct(ctx, &engine.Product{ProductID: id(), Slug: id(), PlatformKeyHash: id()})
			}, "'key:write'"},
		},
		`key_prefix "orch/" read`: {
			{"ping", func(s *registry.Store) error { return s.Ping(ctx) }, "'key:read'"},
		},
		`session_prefix "" write`:       {{"join", join, "'session:write'"}},
		`session_prefix "" read`:        {{"join", join, "'session:write'"}},
		`service_prefix "engine-" read`: {{"checks", checks, "'service:read'"}},
		`node_prefix "" read`:           {{"checks", checks, "'node:read'"}},
	})
}

// ofVault is a mount of its own, and two ways to it.
type ofVault struct{ as, root *secrets.Vault }

// proveVault takes rights of the service's policy in Vault away, and of the engines'.
func proveVault(t *testing.T, stack *devstack.Stack) {
	root, err := stack.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	withRules := func(t *testing.T, rules string) ofVault {
		t.Helper()
		mount := "proof-" + id()
		if _, err := stack.Mount(t.Context(), mount); err != nil {
			t.Fatal(err)
		}
		if err := root.Sys().PutPolicyWithContext(t.Context(), mount, strings.ReplaceAll(rules, `"orch/`, `"`+mount+"/")); err != nil {
			t.Fatalf("%v\n%s", err, rules)
		}
		token, err := root.Auth().Token().CreateOrphanWithContext(t.Context(), &vault.TokenCreateRequest{Policies: []string{mount}, NoDefaultPolicy: true, Period: "1h"})
		if err != nil {
			t.Fatal(err)
		}
		client, err := stack.VaultClient()
		if err != nil {
			t.Fatal(err)
		}
		client.SetToken(token.Auth.ClientToken)
		return ofVault{secrets.New(client, mount), secrets.New(root, mount)}
	}
	ctx := t.Context()
	put := func(v *secrets.Vault, after int) error {
		return v.PutEngineKey(ctx, "e", &secrets.EngineKey{Key: secrets.NewEngineKey(), ID: secrets.NewKeyID()}, after)
	}
	// first returns a call that comes after others with all rights.
	first := func(prepare ...func(*secrets.Vault) error) func(ofVault, func(*secrets.Vault) error) error {
		return func(v ofVault, do func(*secrets.Vault) error) error {
			for _, p := range prepare {
				if err := p(v.root); err != nil {
					t.Fatal(err)
				}
			}
			return do(v.as)
		}
	}
	putKey := func(after int) func(*secrets.Vault) error {
		return func(v *secrets.Vault) error { return put(v, after) }
	}
	putDeployment := func(after int) func(*secrets.Vault) error {
		return func(v *secrets.Vault) error {
			return v.PutDeployment(ctx, &secrets.Deployment{ID: "d", Version: after})
		}
	}
	putProduct := func(after int) func(*secrets.Vault) error {
		return func(v *secrets.Vault) error {
			return v.PutProduct(ctx, "p", &secrets.Product{Revision: 1, Version: after})
		}
	}
	putEnv := func(value string) func(*secrets.Vault) error {
		return func(v *secrets.Vault) error {
			_, _, err := v.PutEnv(ctx, map[string]string{"LLM_API_KEY": value})
			return err
		}
	}
	call := func(name, says string, do func(*secrets.Vault) error, prepare ...func(*secrets.Vault) error) need[ofVault] {
		return need[ofVault]{name, func(v ofVault) error { return first(prepare...)(v, do) }, says}
	}
	keep := func(v *secrets.Vault) error { return loop(v.KeepToken, nil, "renewed=true", "[ERROR]") }
	engineEnv := func(v *secrets.Vault) error { _, err := v.EnvVersion(ctx); return err }
	prove(t, "vault/orch.policy.hcl", secrets.ErrDenied, withRules, map[string][]need[ofVault]{
		`path "orch/data/engines/*" create`: {call("first key", "/data/engines/e", putKey(0))},
		`path "orch/data/engines/*" update`: {call("next key", "/data/engines/e", putKey(1), putKey(0))},
		`path "orch/data/engines/*" read`: {
			call("key", "/data/engines/e", func(v *secrets.Vault) error { _, err := v.EngineKey(ctx, "e", 1, ""); return err }, putKey(0)),
			call("newest key", "/data/engines/e", func(v *secrets.Vault) error { _, err := v.NewestKey(ctx, "e"); return err }, putKey(0)),
		},
		`path "orch/metadata/engines/*" read`: {
			call("versions", "/metadata/engines/e", func(v *secrets.Vault) error { _, err := v.Keys(ctx, "e"); return err }, putKey(0)),
			call("newest version", "/metadata/engines/e", func(v *secrets.Vault) error { _, err := v.NewestVersion(ctx, "e"); return err }),
		},
		`path "orch/metadata/engines/*" list`:   {call("list", "/metadata/engines", func(v *secrets.Vault) error { _, err := v.EngineIDs(ctx); return err })},
		`path "orch/metadata/engines/*" delete`: {call("delete", "/metadata/engines/e", func(v *secrets.Vault) error { return v.DeleteEngine(ctx, "e") }, putKey(0))},
		`path "orch/destroy/engines/*" update`: {
			call("destroy", "/destroy/engines/e", func(v *secrets.Vault) error { return v.DestroyVersionsBefore(ctx, "e", 2) }, putKey(0), putKey(1)),
		},
		`path "orch/data/deployment" create`: {call("first record", "/data/deployment", putDeployment(0))},
		`path "orch/data/deployment" update`: {call("next record", "/data/deployment", putDeployment(1), putDeployment(0))},
		`path "orch/data/deployment" read`: {
			call("record", "/data/deployment", func(v *secrets.Vault) error { _, err := v.Deployment(ctx); return err }, putDeployment(0)),
			call("ping", "/data/deployment", func(v *secrets.Vault) error { return v.Ping(ctx) }),
		},
		`path "orch/metadata/deployment" read`: {call("no record", "/metadata/deployment", func(v *secrets.Vault) error { _, err := v.Deployment(ctx); return err })},
		`path "orch/data/products/*" create`:   {call("first witness", "/data/products/p", putProduct(0))},
		`path "orch/data/products/*" update`:   {call("next witness", "/data/products/p", putProduct(1), putProduct(0))},
		`path "orch/data/products/*" read`:     {call("witness", "/data/products/p", func(v *secrets.Vault) error { _, err := v.Product(ctx, "p"); return err }, putProduct(0))},
		`path "orch/metadata/products/*" read`: {call("no witness", "/metadata/products/p", func(v *secrets.Vault) error { _, err := v.Product(ctx, "p"); return err })},
		`path "orch/metadata/products/*" list`: {call("witnesses", "/metadata/products", func(v *secrets.Vault) error { _, err := v.ProductIDs(ctx); return err })},
		`path "orch/data/engine-env" create`:   {call("first provider keys", "/data/engine-env", putEnv("a"))},
		`path "orch/data/engine-env" update`:   {call("other provider keys", "/data/engine-env", putEnv("b"), putEnv("a"))},
		`path "orch/data/engine-env" read`:     {call("provider keys", "/data/engine-env", engineEnv, putEnv("a"))},
		`path "auth/token/lookup-self" read`:   {call("token", "auth/token/lookup-self", keep)},
		`path "auth/token/renew-self" update`:  {call("token", "auth/token/renew-self", keep)},
	})
	prove(t, "vault/nomad-workloads.policy.hcl", secrets.ErrDenied, withRules, map[string][]need[ofVault]{
		`path "orch/data/engine-env" read`:    {call("provider keys", "/data/engine-env", engineEnv, putEnv("a"))},
		`path "auth/token/lookup-self" read`:  {call("token", "auth/token/lookup-self", keep)},
		`path "auth/token/renew-self" update`: {call("token", "auth/token/renew-self", keep)},
	})
}
