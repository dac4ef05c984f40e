package deploy_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
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
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/link"
	"github.com/septemberai/orch/internal/preflight"
	"github.com/septemberai/orch/jobs"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// TestPolicies takes every right away that the shipped policies give, one at a time. A call
// of the service fails without it, and its error or log line says what is missing: the
// store, and the endpoint or the right. With the whole policy the same call works. A right
// that no call needs does not belong into the policy.
func TestPolicies(t *testing.T) {
	stack, err := devstack.Start(t.Context(), devstack.Config{Locked: true, InMemory: true})
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

// need is a call of the service that needs a right, with what names the right in the log
// line of its refusal.
type need[C caller] struct {
	call string
	do   func(C) error
	says string
}

// caller makes calls with one policy. refusals returns what the service logs about those
// that are refused (Link.TellRefusals).
type caller interface{ refusals() []link.Refusal }

// prove takes the rights of a policy away, one at a time. as returns a caller with a policy.
// denied is the kind of the error that a call returns.
func prove[C caller](t *testing.T, file string, denied error, as func(t *testing.T, rules string) C, needs map[string][]need[C]) {
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
				without := as(t, r.without)
				var logged logLine
				if err := n.do(without); !errors.Is(err, denied) && !errors.As(err, &logged) {
					t.Errorf("%s: %v, want a refusal", n.call, err)
				}
				refusals := without.refusals()
				if !slices.ContainsFunc(refusals, func(why link.Refusal) bool { return strings.Contains(why.Needs+why.Said, n.says) }) {
					t.Errorf("%s: it logs %+v, want a line with %q", n.call, refusals, n.says)
				}
			}
			delete(needs, r.name)
		})
	}
	for name := range needs {
		t.Errorf("the policy has no right %s", name)
	}
}

// heard keeps the refusals of the links of one caller.
type heard struct {
	mu  sync.Mutex
	all []link.Refusal
}

func (h *heard) refusals() []link.Refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.all)
}

// over returns a link to a store that keeps what the store refuses.
func (h *heard) over(t *testing.T, kind link.Kind, stack *devstack.Stack) *link.Link {
	l := link.New(kind, &http.Transport{TLSClientConfig: stack.TLS()})
	l.TellRefusals(func(why link.Refusal) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all = append(h.all, why)
	})
	t.Cleanup(l.Close)
	return l
}

// unpacked requests uncompressed responses, as the service does.
type unpacked struct{ next http.RoundTripper }

func (u unpacked) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Del("Accept-Encoding")
	return u.next.RoundTrip(r)
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
	*heard
}

// proveNomad takes rights of the service's policy in Nomad away.
func proveNomad(t *testing.T, stack *devstack.Stack) {
	as := func(t *testing.T, token string) ofNomad {
		t.Helper()
		h := new(heard)
		cfg := stack.NomadConfig()
		host, err := url.Parse(cfg.Address)
		if err != nil {
			t.Fatal(err)
		}
		cfg.SecretID, cfg.HttpClient = token, &http.Client{Transport: unpacked{h.over(t, link.Nomad(host.Host), stack)}}
		client, err := nomad.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return ofNomad{cluster.New(client, stack.Namespace, cluster.Mkdir, hclog.NewNullLogger()), h}
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
	variableOf := func(prefix string) string {
		name := prefix + id()
		if err := root.PutVariable(ctx, name, &cluster.Variable{KeyHash: "h"}); err != nil {
			t.Fatal(err)
		}
		return name
	}
	variable := func() string { return variableOf("engine-") }
	register := func(c ofNomad) error {
		_, err := c.Register(ctx, job("engine-"+id()), 0)
		return err
	}
	prove(t, "nomad/orch.policy.hcl", cluster.ErrDenied, withRules, map[string][]need[ofNomad]{
		`namespace "engines" submit-job`: {
			{"register", func(c ofNomad) error { _, err := c.Register(ctx, job(""), 0); return err }, `namespace "engines": submit-job`},
			{"parse", func(c ofNomad) error {
				_, err := jobs.Parse(ctx, c.Client(), jobs.Settings{HCL: nomadjobs.Engine, Driver: jobs.RawExec, BinDir: "/engines", Namespace: stack.Namespace, CheckIntervalS: 1, CheckTimeoutS: 1, CheckMaxFailures: 1})
				return notTyped(err)
			}, `namespace "engines": submit-job`},
			{"purge", func(c ofNomad) error { return c.Purge(ctx, "engine-"+id()) }, `namespace "engines": submit-job`},
		},
		`namespace "engines" list-jobs`: {
			{"jobs", func(c ofNomad) error { _, err := c.Jobs(ctx, "engine-", cluster.Unthrottled); return err }, `namespace "engines": list-jobs`},
			{"ping", func(c ofNomad) error { return c.Ping(ctx) }, `namespace "engines": list-jobs`},
		},
		`namespace "engines" read-job`: {
			{"job", func(c ofNomad) error { _, err := c.Job(ctx, *running.ID); return err }, `read-job`},
			{"jobs", func(c ofNomad) error { _, err := c.Jobs(ctx, "engine-", cluster.Unthrottled); return err }, `read-job`},
			{"allocations", func(c ofNomad) error {
				w := c.Watch(*running.ID)
				defer w.Close()
				return w.Refresh(ctx)
			}, `read-job`},
			{"events", func(c ofNomad) error { return followed(c.Cluster, stack.Namespace) }, `read-job`},
		},
		`namespace "engines" alloc-lifecycle`: {
			{"signal", func(c ofNomad) error { return c.Signal(ctx, alloc, "SIGCONT") }, `namespace "engines": alloc-lifecycle`},
		},
		`namespace "engines" read-logs`: {
			{"logs", func(c ofNomad) error {
				query := &nomad.QueryOptions{Namespace: stack.Namespace, Params: map[string]string{"task": "engine", "type": "stdout", "plain": "true"}}
				body, err := c.Client().Raw().Response("/v1/client/fs/logs/"+alloc, query.WithContext(ctx))
				if err == nil {
					err = body.Close()
				}
				return notTyped(err)
			}, `namespace "engines": read-logs`},
		},
		`namespace "engines" host-volume-register`: {
			{"register", func(c ofNomad) error {
				_, err := c.RegisterVolume(ctx, "engine-"+id(), node, t.TempDir())
				return err
			}, `host-volume-`},
			{"create", func(c ofNomad) error { _, err := c.CreateVolume(ctx, "engine-"+id(), node, nil); return err }, `host-volume-`},
		},
		`namespace "engines" host-volume-delete`: {
			{"delete", func(c ofNomad) error { return c.DeleteVolume(ctx, volume().ID) }, `namespace "engines": host-volume-delete`},
		},
		`variables path "nomad/jobs/engine-*" write`: {
			{"write", func(c ofNomad) error { return c.PutVariable(ctx, "engine-"+id(), &cluster.Variable{KeyHash: "h"}) }, `namespace "engines": variables path "nomad/jobs/engine-*": write`},
		},
		`variables path "nomad/jobs/engine-*" read`: {
			{"read", func(c ofNomad) error { _, err := c.Variable(ctx, variable()); return err }, `namespace "engines": variables path "nomad/jobs/engine-*": read`},
		},
		`variables path "nomad/jobs/engine-*" destroy`: {
			{"destroy", func(c ofNomad) error { return c.DeleteVariable(ctx, variable()) }, `namespace "engines": variables path "nomad/jobs/engine-*": destroy`},
		},
		`variables path "nomad/jobs/orch-brain-*" write`: {
			{"write", func(c ofNomad) error {
				return c.PutVariable(ctx, "orch-brain-"+id(), &cluster.Variable{KeyHash: "h"})
			}, `namespace "engines": variables path "nomad/jobs/orch-brain-*": write`},
		},
		`variables path "nomad/jobs/orch-brain-*" read`: {
			{"read", func(c ofNomad) error { _, err := c.Variable(ctx, variableOf("orch-brain-")); return err }, `namespace "engines": variables path "nomad/jobs/orch-brain-*": read`},
		},
		`variables path "nomad/jobs/orch-brain-*" destroy`: {
			{"destroy", func(c ofNomad) error { return c.DeleteVariable(ctx, variableOf("orch-brain-")) }, `namespace "engines": variables path "nomad/jobs/orch-brain-*": destroy`},
		},
		`host_volume "engine-*" write`: {{"register", register, `host_volume "engine-*": write`}},
		`host_volume "engine-*" read`:  {{"register", register, `host_volume "engine-*": write`}},
		`node write`: {
			{"eligibility", func(c ofNomad) error { return c.MakeEligible(ctx, node, false) }, `node: write`},
		},
		`node read`: {
			{"node", func(c ofNomad) error { _, err := c.ReadNode(ctx, node); return err }, `node: read`},
			{"volumes of a node", func(c ofNomad) error { _, err := c.NodeVolumes(ctx, node); return err }, `node: read`},
			{"events", func(c ofNomad) error { return followed(c.Cluster, stack.Namespace) }, `node: read`},
		},
		`agent read`: {{"settings", func(c ofNomad) error { return settings(ctx, c.Client()) }, `agent: read`}},
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

// settings reads the agents' settings that the service warns of.
func settings(ctx context.Context, client *nomad.Client) error {
	for _, result := range (&preflight.Stores{Nomad: client, Namespace: "engines", Driver: "raw_exec"}).Settings(ctx) {
		if result.State == preflight.Unknown {
			return logLine(result.Remedy)
		}
	}
	return nil
}

// notTyped marks an error that the service only logs.
func notTyped(err error) error {
	if err != nil {
		return logLine(err.Error())
	}
	return nil
}

// ofConsul is the registry with a token.
type ofConsul struct {
	*registry.Store
	*heard
}

// proveConsul takes rights of the service's policy in Consul away.
func proveConsul(t *testing.T, stack *devstack.Stack) {
	root, err := consul.NewClient(stack.ConsulConfig())
	if err != nil {
		t.Fatal(err)
	}
	withRules := func(t *testing.T, rules string) ofConsul {
		t.Helper()
		name, token := "proof-"+id(), uuid.NewString()
		if _, _, err := root.ACL().PolicyCreate(&consul.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
			t.Fatalf("%v\n%s", err, rules)
		}
		if _, _, err := root.ACL().TokenCreate(&consul.ACLToken{SecretID: token, Policies: []*consul.ACLTokenPolicyLink{{Name: name}}}, nil); err != nil {
			t.Fatal(err)
		}
		h := new(heard)
		client, err := consul.NewClient(&consul.Config{Address: stack.ConsulAddr, Token: token, HttpClient: &http.Client{Transport: registry.RawAnswers(h.over(t, link.Consul, stack))}})
		if err != nil {
			t.Fatal(err)
		}
		return ofConsul{registry.New(client, "orch/"), h}
	}
	// An engine's service, as Nomad registers it.
	alloc := uuid.NewString()
	err = root.Agent().ServiceRegister(&consul.AgentServiceRegistration{
		ID: "_nomad-task-" + alloc + "-group-engine", Name: "engine-" + id(), Check: &consul.AgentServiceCheck{TTL: "1h", Status: consul.HealthPassing},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	join := func(s ofConsul) error {
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
	checks := func(s ofConsul) error {
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
	prove(t, "consul/orch.policy.hcl", registry.ErrDenied, withRules, map[string][]need[ofConsul]{
		`key_prefix "orch/" write`: {
			{"write", func(s ofConsul) error { return s.RequestReconcile(ctx) }, "'key:write'"},
			{"transaction", func(s ofConsul) error {
				return s.CreateProduct(ctx, &engine.Product{ProductID: id(), Slug: id(), PlatformKeyHash: id()})
			}, "'key:write'"},
		},
		`key_prefix "orch/" read`: {
			{"ping", func(s ofConsul) error { return s.Ping(ctx) }, "'key:read'"},
		},
		`session_prefix "" write`:       {{"join", join, "'session:write'"}},
		`session_prefix "" read`:        {{"join", join, "'session:write'"}},
		`service_prefix "engine-" read`: {{"checks", checks, "'service:read'"}},
		`node_prefix "" read`:           {{"checks", checks, "'node:read'"}},
	})
}

// ofVault is a mount of its own, and two ways to it.
type ofVault struct {
	as, root *secrets.Vault
	client   *vault.Client // that of as
	mount    string
	*heard
}

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
		h := new(heard)
		client, err := vault.NewClient(&vault.Config{Address: stack.VaultAddr, HttpClient: &http.Client{Transport: h.over(t, link.Vault, stack)}})
		if err != nil {
			t.Fatal(err)
		}
		client.SetNamespace("")
		client.SetToken(token.Auth.ClientToken)
		return ofVault{secrets.New(client, mount), secrets.New(root, mount), client, mount, h}
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
	// brain returns a call of Vault for the key of a brain, which comes after others with all
	// rights. No call of package secrets has it yet.
	type onBrain func(c *vault.Client, mount string) error
	write := func(after int) onBrain {
		return func(c *vault.Client, mount string) error {
			_, err := c.Logical().WriteWithContext(ctx, mount+"/data/brains/e", map[string]any{"options": map[string]any{"cas": after}, "data": map[string]any{"identity": "i"}})
			return err
		}
	}
	read := func(path string) onBrain {
		return func(c *vault.Client, mount string) error {
			_, err := c.Logical().ReadWithContext(ctx, mount+path)
			return err
		}
	}
	brain := func(name, says string, do onBrain, prepare ...onBrain) need[ofVault] {
		return need[ofVault]{name, func(v ofVault) error {
			for _, p := range prepare {
				if err := p(root, v.mount); err != nil {
					t.Fatal(err)
				}
			}
			return notTyped(do(v.client, v.mount))
		}, says}
	}
	engineEnv := func(v *secrets.Vault) error { _, err := v.EnvVersion(ctx); return err }
	prove(t, "vault/orch.policy.hcl", secrets.ErrDenied, withRules, map[string][]need[ofVault]{
		`path "orch/data/engines/*" create`: {call("first key", `/data/engines/*": create, update`, putKey(0))},
		`path "orch/data/engines/*" update`: {call("next key", `/data/engines/*": create, update`, putKey(1), putKey(0))},
		`path "orch/data/engines/*" read`: {
			call("key", `/data/engines/*": read`, func(v *secrets.Vault) error { _, err := v.EngineKey(ctx, "e", 1, ""); return err }, putKey(0)),
			call("newest key", `/data/engines/*": read`, func(v *secrets.Vault) error { _, err := v.NewestKey(ctx, "e"); return err }, putKey(0)),
		},
		`path "orch/metadata/engines/*" read`: {
			call("versions", `/metadata/engines/*": read`, func(v *secrets.Vault) error { _, err := v.Keys(ctx, "e"); return err }, putKey(0)),
			call("newest version", `/metadata/engines/*": read`, func(v *secrets.Vault) error { _, err := v.NewestVersion(ctx, "e"); return err }),
		},
		`path "orch/metadata/engines/*" list`:   {call("list", `/metadata/engines": list`, func(v *secrets.Vault) error { _, err := v.EngineIDs(ctx); return err })},
		`path "orch/metadata/engines/*" delete`: {call("delete", `/metadata/engines/*": delete`, func(v *secrets.Vault) error { return v.DeleteEngine(ctx, "e") }, putKey(0))},
		`path "orch/destroy/engines/*" update`: {
			call("destroy", `/destroy/engines/*": create, update`, func(v *secrets.Vault) error { return v.DestroyVersionsBefore(ctx, "e", 2) }, putKey(0), putKey(1)),
		},
		`path "orch/data/brains/*" create`:   {brain("first identity", `/data/brains/e": create, update`, write(0))},
		`path "orch/data/brains/*" update`:   {brain("next identity", `/data/brains/e": create, update`, write(1), write(0))},
		`path "orch/data/brains/*" read`:     {brain("identity", `/data/brains/e": read`, read("/data/brains/e"), write(0))},
		`path "orch/metadata/brains/*" read`: {brain("version", `/metadata/brains/e": read`, read("/metadata/brains/e"), write(0))},
		`path "orch/metadata/brains/*" list`: {brain("list", `/metadata/brains": list`, func(c *vault.Client, mount string) error {
			_, err := c.Logical().ListWithContext(ctx, mount+"/metadata/brains")
			return err
		})},
		`path "orch/metadata/brains/*" delete`: {brain("delete", `/metadata/brains/e": delete`, func(c *vault.Client, mount string) error {
			_, err := c.Logical().DeleteWithContext(ctx, mount+"/metadata/brains/e")
			return err
		}, write(0))},
		`path "orch/data/deployment" create`: {call("first record", `/data/deployment": create, update`, putDeployment(0))},
		`path "orch/data/deployment" update`: {call("next record", `/data/deployment": create, update`, putDeployment(1), putDeployment(0))},
		`path "orch/data/deployment" read`: {
			call("record", `/data/deployment": read`, func(v *secrets.Vault) error { _, err := v.Deployment(ctx); return err }, putDeployment(0)),
			call("ping", `/data/deployment": read`, func(v *secrets.Vault) error { return v.Ping(ctx) }),
		},
		`path "orch/metadata/deployment" read`: {call("no record", `/metadata/deployment": read`, func(v *secrets.Vault) error { _, err := v.Deployment(ctx); return err })},
		`path "orch/data/products/*" create`:   {call("first witness", `/data/products/p": create, update`, putProduct(0))},
		`path "orch/data/products/*" update`:   {call("next witness", `/data/products/p": create, update`, putProduct(1), putProduct(0))},
		`path "orch/data/products/*" read`:     {call("witness", `/data/products/p": read`, func(v *secrets.Vault) error { _, err := v.Product(ctx, "p"); return err }, putProduct(0))},
		`path "orch/metadata/products/*" read`: {call("no witness", `/metadata/products/p": read`, func(v *secrets.Vault) error { _, err := v.Product(ctx, "p"); return err })},
		`path "orch/metadata/products/*" list`: {call("witnesses", `/metadata/products": list`, func(v *secrets.Vault) error { _, err := v.ProductIDs(ctx); return err })},
		`path "orch/data/engine-env" create`:   {call("first provider keys", `/data/engine-env": create, update`, putEnv("a"))},
		`path "orch/data/engine-env" update`:   {call("other provider keys", `/data/engine-env": create, update`, putEnv("b"), putEnv("a"))},
		`path "orch/data/engine-env" read`:     {call("provider keys", `/data/engine-env": read`, engineEnv, putEnv("a"))},
		`path "auth/token/lookup-self" read`:   {call("token", `auth/token/lookup-self": read`, keep)},
		`path "auth/token/renew-self" update`:  {call("token", `auth/token/renew-self": create, update`, keep)},
	})
	if _, err := stack.EnginePKI(ctx); err != nil {
		t.Fatal(err)
	}
	// The role decides about names (TestLocked of devstack), the policy who may ask.
	if _, err := root.Logical().JSONMergePatch(ctx, "pki-engines/roles/engine", map[string]any{"allow_any_name": true}); err != nil {
		t.Fatal(err)
	}
	prove(t, "vault/engine-tls.policy.hcl", secrets.ErrDenied, withRules, map[string][]need[ofVault]{
		`path "pki-engines/issue/engine" update`: {{"certificate", func(v ofVault) error {
			_, err := v.client.Logical().WriteWithContext(ctx, "pki-engines/issue/engine", map[string]any{"common_name": "engine-e.engine.orch"})
			return notTyped(err)
		}, `pki-engines/issue/engine": create, update`}},
	})
	prove(t, "vault/nomad-workloads.policy.hcl", secrets.ErrDenied, withRules, map[string][]need[ofVault]{
		`path "orch/data/engine-env" read`:    {call("provider keys", `/data/engine-env": read`, engineEnv, putEnv("a"))},
		`path "auth/token/lookup-self" read`:  {call("token", `auth/token/lookup-self": read`, keep)},
		`path "auth/token/renew-self" update`: {call("token", `auth/token/renew-self": create, update`, keep)},
	})
}
