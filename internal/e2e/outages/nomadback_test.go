package outages

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// directories returns the directories of all engines' volumes, by engine_id.
func directories(s *harness.Stores) map[string]string {
	s.T.Helper()
	list, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	paths := map[string]string{}
	for _, stub := range list {
		v, _, err := s.Nomad.HostVolumes().Get(stub.ID, nil)
		if err != nil {
			s.T.Fatal(err)
		}
		paths[v.Name[len("engine-"):]] = v.HostPath
	}
	return paths
}

// gone returns an error unless a directory exists or not, as wanted.
func gone(path string, want bool) error {
	_, err := os.Stat(path)
	if is := errors.Is(err, os.ErrNotExist); path == "" || is != want {
		return errors.Join(fmt.Errorf("%q is gone: %t", path, is), err)
	}
	return nil
}

// stranded is a deployment with an engine per user. Each brain contains its user's name.
type stranded struct {
	t       *testing.T
	stack   *devstack.Stack
	s       *harness.Stores
	r       *harness.Replica
	vars    map[string]string // of r
	c       *client.Client
	engines map[string]*client.Engine
	paths   map[string]string // by engine_id
}

func newStranded(t *testing.T, prefix string, users ...string) *stranded {
	t.Helper()
	stack := harness.OwnStack(t)
	d := &stranded{t: t, stack: stack, s: harness.OpenStores(t, stack), engines: map[string]*client.Engine{}}
	d.vars = harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=1", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2")
	d.r = harness.StartService(t, stack, d.vars)
	d.c = d.r.Product(t, nil)
	for _, user := range users {
		e, err := d.c.Provision(t.Context(), user, "")
		if err != nil {
			t.Fatal(err)
		}
		harness.Remember(t, e, e.APIKey, user)
		d.engines[user] = e
	}
	d.paths = directories(d.s)
	harness.WatchBrains(t, stack)
	return d
}

// newToken restarts the service, as an operator has to after Nomad lost its tokens.
func (d *stranded) newToken() {
	d.t.Helper()
	if harness.Locked {
		d.r.Stop()
		d.r = harness.StartService(d.t, d.stack, d.vars)
		d.c.BaseURL = d.r.URL
	}
}

func (d *stranded) id(user string) string { return d.engines[user].EngineID }

func (d *stranded) path(user string) string { return d.paths[d.id(user)] }

// runs fails unless the engine of a user runs as before, with the same id, key and memory.
func (d *stranded) runs(user string) {
	d.t.Helper()
	e := harness.AwaitEngine(d.t, d.c, user, "running", "")
	was := d.engines[user]
	if e.EngineID != was.EngineID || e.APIKey != was.APIKey {
		d.t.Fatalf("%s has engine %+v, had %+v", user, e, was)
	}
	if err := harness.Export(d.t, e, was.APIKey).Knows(user); err != nil {
		d.t.Errorf("%s: %v", user, err)
	}
	if n := harness.Processes(d.stack, e.EngineID); n != 1 {
		d.t.Errorf("%s has %d processes", user, n)
	}
}

// destroyed destroys the engine of a user, and fails unless its data is deleted.
func (d *stranded) destroyed(user string) {
	d.t.Helper()
	if _, err := d.c.Destroy(d.t.Context(), user); err != nil {
		d.t.Fatalf("destroy of %s: %v", user, err)
	}
	if err := gone(d.path(user), true); err != nil {
		d.t.Errorf("%s: %v; unreachable volumes %+v", user, err, d.r.Unreachable(d.t))
	}
	if left := d.s.Traces(d.id(user)); len(left) > 0 {
		d.t.Errorf("left of %s: %v", user, left)
	}
	if n := harness.Processes(d.stack, d.id(user)); n > 0 {
		d.t.Errorf("%s has %d processes after its destruction", user, n)
	}
}

// reported waits until a pass reports that Nomad has lost the volumes of users.
func (d *stranded) reported(users ...string) {
	d.t.Helper()
	harness.Eventually(d.t, "a pass reports the volumes that are lost", func() error {
		plan, err := d.r.Admin().PlanReconcile(d.t.Context())
		if err != nil {
			return err
		}
		reported := map[string]bool{}
		for _, a := range plan.Actions {
			reported[a.EngineID] = reported[a.EngineID] || a.Action == "report"
		}
		for _, user := range users {
			if !reported[d.id(user)] {
				return fmt.Errorf("not that of %s: %+v", user, plan.Actions)
			}
		}
		return nil
	})
}

// Nomad's servers lost their state; the nodes, their volumes and the engines' processes
// survived. No call returns success without a confirmation by the node, and every engine is
// restored.
func TestNomadServersLost(t *testing.T) {
	t.Parallel()
	d := newStranded(t, "servers-lost/", "running", "stopping", "stopped", "doomed")
	ctx, node := t.Context(), d.s.ReadyNode()
	if _, err := d.c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Lose(devstack.NomadServer); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Restart(ctx, devstack.NomadServer); err != nil {
		t.Fatal(err)
	}

	d.newToken()

	// The node's agent cannot register until somebody acts; the processes run.
	harness.Eventually(t, "a stop is refused", func() error {
		err := harness.ErrOf(d.c.Stop(ctx, "stopping"))
		if e := new(client.Error); !errors.As(err, &e) || e.Code != client.ErrStopUnconfirmed {
			return fmt.Errorf("%w, %d processes", err, harness.Processes(d.stack, d.id("stopping")))
		}
		return nil
	})
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil { // its user may start over
		t.Fatal(err)
	}
	if g, listed := d.r.Unreachable(t)[d.id("doomed")]; !listed || g.VolumePath != d.path("doomed") {
		t.Errorf("the unreachable volume is %+v, listed %t", g, listed)
	}
	harness.WantCode(t, harness.ErrOf(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	for _, user := range []string{"running", "stopping", "doomed"} {
		if n := harness.Processes(d.stack, d.id(user)); n != 1 {
			t.Errorf("%s has %d processes", user, n)
		}
	}

	// The agent is made to register again. It ignores lists of allocations with an index
	// below the one that it had, so nothing that runs there is proven to have ended.
	d.kick()
	d.reported("running", "stopping", "stopped")
	harness.WantCode(t, harness.ErrOf(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	harness.WantCode(t, harness.ErrOf(d.r.Admin().AdoptNode(ctx, "", node, false)), 504, "STOP_UNCONFIRMED")
	if got, err := d.c.Engine(ctx, "stopping"); err != nil || got.Status == "stopped" {
		t.Errorf("the engine whose process lives is %+v, %v", got, err)
	}

	// As in docs/operations.md: its agent is restarted, then its engines are adopted.
	if err := d.stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	if g, listed := d.r.Unreachable(t)[d.id("doomed")]; !listed {
		t.Errorf("the unreachable volume is not listed: %+v", g)
	}
	d.adopt(node, node, client.NodeAdoption{Adopted: 3, Cleared: 1})
	if again, err := d.r.Admin().AdoptNode(ctx, "", node, false); err != nil || again.Adopted+again.Left+again.Cleared+len(again.Failed) > 0 {
		t.Errorf("adopted once more: %+v, %v", again, err)
	}
	if err := gone(d.path("doomed"), true); err != nil {
		t.Error(err)
	}
	if unreachable := d.r.Unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
	d.runs("running")
	for _, user := range []string{"stopping", "stopped"} {
		harness.AwaitEngine(t, d.c, user, "stopped", "")
		if _, err := d.c.Start(ctx, user); err != nil {
			t.Fatal(err)
		}
		d.runs(user)
	}
	// They are engines like all others.
	harness.CrashEngine(t, harness.IsNow(t, d.c, "running", "running", ""))
	harness.Eventually(t, "it runs again", func() error {
		e, err := harness.EngineIs(t, d.c, "running", "running", "")
		if err != nil {
			return err
		}
		status, err := harness.EngineCall(ctx, e, e.APIKey, http.MethodGet, "/memory/export", nil, nil)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d, %w", status, err)
		}
		return nil
	})
	for _, user := range []string{"running", "stopping", "stopped"} {
		d.destroyed(user)
	}
}

// kick makes the client's agent register with servers that do not know it.
func (d *stranded) kick() {
	d.t.Helper()
	harness.Eventually(d.t, "the agent registers", func() error {
		cfg := d.stack.NomadConfig()
		cfg.Address = d.stack.Addr(devstack.NomadClient(0))
		agent, err := nomad.NewClient(cfg)
		if err != nil {
			return err
		}
		if _, err := agent.Nodes().Meta().Apply(&nomad.NodeMetaApplyRequest{Meta: map[string]*string{"orch_kick": new("1")}}, nil); err != nil {
			return err
		}
		nodes, _, err := d.s.Nomad.Nodes().List(nil)
		if err != nil || len(nodes) == 0 || nodes[0].Status != nomad.NodeStatusReady {
			return fmt.Errorf("%d nodes, %w", len(nodes), err)
		}
		return nil
	})
}

// adopt adopts the engines of a node, in as many calls as necessary.
func (d *stranded) adopt(from, to string, want client.NodeAdoption) {
	d.t.Helper()
	var sum client.NodeAdoption
	began := time.Now()
	harness.Eventually(d.t, "the engines are adopted", func() error {
		done, err := d.r.Admin().AdoptNode(d.t.Context(), from, to, false)
		if err != nil {
			return err
		}
		sum.Adopted, sum.Cleared = sum.Adopted+done.Adopted, sum.Cleared+done.Cleared
		if done.Left > 0 || len(done.Failed) > 0 {
			return fmt.Errorf("%+v", done)
		}
		return nil
	})
	d.t.Logf("adopted %d engines and cleared %d in %s", sum.Adopted, sum.Cleared, time.Since(began).Round(100*time.Millisecond))
	if sum.Adopted != want.Adopted || sum.Cleared != want.Cleared {
		d.t.Errorf("adopted %+v, want %+v", sum, want)
	}
	rows := map[string]int{}
	for _, row := range d.r.Audited(d.t, "adopt") {
		if row.Outcome == "ok" {
			rows[row.EngineID]++
		}
		if row.Metadata["from"] != from || row.Metadata["to"] != to {
			d.t.Errorf("audit row %+v", row)
		}
	}
	if len(rows) != want.Adopted {
		d.t.Errorf("audit rows of %v, want %d", rows, want.Adopted)
	}
}

// registered counts the volumes whose name has this suffix.
func (d *stranded) registered(suffix string) (n int) {
	d.t.Helper()
	volumes, _, err := d.s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, v := range volumes {
		if strings.HasSuffix(v.Name, suffix) {
			n++
		}
	}
	return n
}

// A node's agent lost its state and registered as another node, while the old processes
// still run beside it. They are ended before their engines run on the new node.
func TestNomadClientLost(t *testing.T) {
	t.Parallel()
	d := newStranded(t, "client-lost/", "running", "stopped", "doomed")
	ctx, old := t.Context(), d.s.ReadyNode()
	if _, err := d.c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Lose(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, d.c, "running", "failed", "node_down")
	node := d.s.ReadyNode()
	if node == old {
		t.Fatal("the node kept its id")
	}
	harness.WantCode(t, harness.ErrOf(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	harness.WantCode(t, harness.ErrOf(d.c.Start(ctx, "running")), 503, "CAPACITY_EXHAUSTED")
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"running", "doomed"} {
		if n := harness.Processes(d.stack, d.id(user)); n != 1 {
			t.Errorf("%s has %d processes", user, n)
		}
	}
	if _, listed := d.r.Unreachable(t)[d.id("doomed")]; !listed {
		t.Error("the unreachable volume is not listed")
	}
	harness.WantCode(t, harness.ErrOf(d.r.Admin().AdoptNode(ctx, node, old, false)), 400, "INVALID_REQUEST")
	// A call that is interrupted before it has written the volumes into the rows is
	// continued.
	cut, cancel := context.WithCancel(ctx)
	answer := make(chan error, 1)
	go func() { answer <- harness.ErrOf(d.r.Admin().AdoptNode(cut, old, node, false)) }()
	harness.Eventually(t, "volumes are registered", func() error {
		if n := d.registered(".r2"); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	cancel()
	if err := <-answer; err == nil {
		t.Error("the interrupted call got a response")
	}
	d.adopt(old, node, client.NodeAdoption{Adopted: 2, Cleared: 1})
	if d.registered(".r2") != 2 || d.registered(".r3") != 0 {
		t.Errorf("%d and %d volumes are registered", d.registered(".r2"), d.registered(".r3"))
	}
	if err := gone(d.path("doomed"), true); err != nil {
		t.Error(err)
	}
	d.runs("running")
	if _, err := d.c.Start(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	d.runs("stopped")
	if left := d.s.Traces(d.id("doomed")); len(left) > 0 {
		t.Errorf("left of the destroyed engine: %v", left)
	}
	for _, user := range []string{"running", "stopped"} {
		d.destroyed(user)
	}
	if unreachable := d.r.Unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
}

// busyNode makes the node register again continuously, as it does for each volume that is
// created or deleted there.
func busyNode(t *testing.T, s *harness.Stores) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	node := s.ReadyNode()
	var busy sync.WaitGroup
	busy.Go(func() {
		for ctx.Err() == nil {
			v := nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
				Name: "busy", PluginID: "mkdir", NodeID: node,
				RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-writer", AttachmentMode: "file-system"}},
			}}
			made, _, err := s.Nomad.HostVolumes().Create(&v, nil)
			if err == nil {
				_, _, err = s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: made.Volume.ID}, nil)
			}
			if err != nil {
				t.Errorf("keeping the node busy: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
		}
	})
	t.Cleanup(func() { cancel(); busy.Wait() })
}

// Nomad forgets a purged job at once, while its process takes time to end: a stop does not
// return before that, and no process is started.
func TestJobPurgedByHand(t *testing.T) {
	t.Parallel()
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, harness.With(harness.Soon, "ORCH_CONSUL_PREFIX=purged/", "ORCH_VOLUME_POOL=2", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2"))
	s, ctx := harness.OpenStores(t, stack), t.Context()
	c := r.Product(t, map[string]any{"engine_image": "reference-engine.term-delay-20s"})
	harness.WatchBrains(t, stack)
	busyNode(t, s)
	for name, act := range map[string]func(t *testing.T, user string) error{
		"Stop": func(_ *testing.T, user string) error { return harness.ErrOf(c.Stop(ctx, user)) },
		"Rotate": func(t *testing.T, user string) error {
			key, err := c.RotateKey(ctx, user)
			if err == nil {
				harness.KeyIs(t, harness.AwaitEngine(t, c, user, "running", ""), key, true)
			}
			return err
		},
		"Destroy": func(_ *testing.T, user string) error { return harness.ErrOf(c.Destroy(ctx, user)) },
		"Restart": func(t *testing.T, user string) error { // by the service
			harness.RunsAnew(t, c, user)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := c.Provision(ctx, name, "")
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, name)
			if _, _, err := s.Nomad.Jobs().Deregister("engine-"+e.EngineID, true, nil); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if name == "Restart" {
				harness.Eventually(t, "it does not run", func() error {
					admitted, err := harness.Admit(ctx, c, name, false, false)
					if err == nil && admitted.Admitted {
						err = errors.New("its user is admitted")
					}
					return err
				})
				t.Logf("noticed after %s", time.Since(began).Round(time.Millisecond))
			}
			// The service restarts it by itself, and a call may come between.
			harness.Eventually(t, "it is done", func() error {
				if name != "Restart" {
					began = time.Now()
				}
				err := act(t, name)
				if err != nil && !errors.Is(err, client.ErrEngineBusy) && (name != "Rotate" || !errors.Is(err, client.ErrEngineNotRunning)) {
					t.Fatal(err)
				}
				return err
			})
			// A process may take 40 s to end; other work on its node must not prolong that.
			if took := time.Since(began); name != "Restart" && took > 100*time.Second {
				t.Errorf("done after %s", took)
			}
			want := 0
			if name == "Restart" || name == "Rotate" {
				want = 1
			}
			if n := harness.Processes(stack, e.EngineID); n != want {
				t.Errorf("it has %d processes", n)
			}
			switch name {
			case "Stop":
				if _, err := c.Start(ctx, name); err != nil {
					t.Fatal(err)
				}
				fallthrough
			case "Restart", "Rotate":
				e := harness.IsNow(t, c, name, "running", "")
				if err := harness.Export(t, e, e.APIKey).Knows(name); err != nil {
					t.Error(err)
				}
				if _, err := c.Destroy(ctx, name); err != nil {
					t.Error(err)
				}
			}
			if left := s.Traces(e.EngineID); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
