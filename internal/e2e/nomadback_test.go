package e2e

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
)

// processes counts the processes of an engine that the machine runs, whatever Nomad
// knows of them.
func processes(stack *devstack.Stack, engineID string) (n int) {
	for _, task := range stack.Tasks() {
		if task.JobID == "engine-"+engineID {
			n++
		}
	}
	return n
}

// watchBrains fails the test when an engine has two processes at any time.
func watchBrains(t *testing.T, stack *devstack.Stack) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		told := map[string]bool{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			of := map[string][]devstack.Task{}
			for _, task := range stack.Tasks() {
				if strings.HasPrefix(task.JobID, "engine-") {
					of[task.JobID] = append(of[task.JobID], task)
				}
			}
			for job, tasks := range of {
				if len(tasks) > 1 && !told[job] {
					told[job] = true
					t.Errorf("%s has %d processes: %+v", job, len(tasks), tasks)
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
}

// directories are the directories of all engines' volumes, by engine_id.
func (s *stores) directories() map[string]string {
	s.t.Helper()
	list, _, err := s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	paths := map[string]string{}
	for _, stub := range list {
		v, _, err := s.nomad.HostVolumes().Get(stub.ID, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		paths[v.Name[len("engine-"):]] = v.HostPath
	}
	return paths
}

// readyNode is the one node that is up.
func (s *stores) readyNode() (id string) {
	s.t.Helper()
	nodes, _, err := s.nomad.Nodes().List(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Status == nomad.NodeStatusReady {
			if id != "" {
				s.t.Fatalf("both %s and %s are up", id, n.ID)
			}
			id = n.ID
		}
	}
	if id == "" {
		s.t.Fatal("no node is up")
	}
	return id
}

// gone says what is wrong when a directory is there, or not.
func gone(path string, want bool) error {
	_, err := os.Stat(path)
	if is := errors.Is(err, os.ErrNotExist); path == "" || is != want {
		return fmt.Errorf("%q is gone: %t (%v)", path, is, err)
	}
	return nil
}

// unreachable are the engine_ids of all unreachable volumes.
func (r *replica) unreachable(t *testing.T) map[string]client.UnreachableVolume {
	t.Helper()
	list, err := r.admin().UnreachableVolumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unreachable := map[string]client.UnreachableVolume{}
	for _, g := range list.UnreachableVolumes {
		unreachable[g.EngineID] = g
	}
	return unreachable
}

// stranded is a deployment with an engine per user, each of which knows its user's
// name.
type stranded struct {
	t       *testing.T
	stack   *devstack.Stack
	s       *stores
	r       *replica
	c       *client.Client
	engines map[string]*client.Engine
	paths   map[string]string // by engine_id
}

func newStranded(t *testing.T, prefix string, users ...string) *stranded {
	t.Helper()
	stack := ownStack(t)
	d := &stranded{t: t, stack: stack, s: openStores(t, stack), engines: map[string]*client.Engine{}}
	d.r = startService(t, stack, with(soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=1", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2"))
	d.c = d.r.product(t, nil)
	for _, user := range users {
		e, err := d.c.Provision(t.Context(), user, "")
		if err != nil {
			t.Fatal(err)
		}
		remember(t, e, e.APIKey, user)
		d.engines[user] = e
	}
	d.paths = d.s.directories()
	watchBrains(t, stack)
	return d
}

func (d *stranded) id(user string) string   { return d.engines[user].EngineID }
func (d *stranded) path(user string) string { return d.paths[d.id(user)] }

// runs fails unless the engine of a user runs as before: the same, with its key and
// memory.
func (d *stranded) runs(user string) {
	d.t.Helper()
	e := awaitEngine(d.t, d.c, user, "running", "")
	was := d.engines[user]
	if e.EngineID != was.EngineID || e.APIKey != was.APIKey {
		d.t.Fatalf("%s has engine %+v, had %+v", user, e, was)
	}
	if err := export(d.t, e, was.APIKey).knows(user); err != nil {
		d.t.Errorf("%s: %v", user, err)
	}
	if n := processes(d.stack, e.EngineID); n != 1 {
		d.t.Errorf("%s has %d processes", user, n)
	}
}

// destroyed destroys the engine of a user and fails unless its data is gone.
func (d *stranded) destroyed(user string) {
	d.t.Helper()
	if _, err := d.c.Destroy(d.t.Context(), user); err != nil {
		d.t.Fatalf("destroy of %s: %v", user, err)
	}
	if err := gone(d.path(user), true); err != nil {
		d.t.Errorf("%s: %v; unreachable volumes %+v", user, err, d.r.unreachable(d.t))
	}
	if left := d.s.traces(d.id(user)); len(left) > 0 {
		d.t.Errorf("left of %s: %v", user, left)
	}
	if n := processes(d.stack, d.id(user)); n > 0 {
		d.t.Errorf("%s has %d processes after its destruction", user, n)
	}
}

// reported waits until a pass says that Nomad has lost the volumes of users.
func (d *stranded) reported(users ...string) {
	d.t.Helper()
	eventually(d.t, "a pass reports the volumes that are lost", func() error {
		plan, err := d.r.admin().PlanReconcile(d.t.Context())
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

// Nomad's servers lost their state; the nodes, their volumes and the engines'
// processes live. Nothing is said to be done that no node confirms, and every engine
// comes back.
func TestNomadServersLost(t *testing.T) {
	t.Parallel()
	d := newStranded(t, "servers-lost/", "running", "stopping", "stopped", "doomed")
	ctx, node := t.Context(), d.s.readyNode()
	if _, err := d.c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Lose(devstack.NomadServer); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Restart(ctx, devstack.NomadServer); err != nil {
		t.Fatal(err)
	}

	// The node's agent is locked out until somebody acts; the processes live.
	eventually(t, "a stop is refused", func() error {
		err := second(d.c.Stop(ctx, "stopping"))
		if e := new(client.Error); !errors.As(err, &e) || e.Code != client.ErrStopUnconfirmed {
			return fmt.Errorf("%w, %d processes", err, processes(d.stack, d.id("stopping")))
		}
		return nil
	})
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil { // its user may begin anew
		t.Fatal(err)
	}
	if g, listed := d.r.unreachable(t)[d.id("doomed")]; !listed || g.VolumePath != d.path("doomed") {
		t.Errorf("the unreachable volume is %+v, listed %t", g, listed)
	}
	wantCode(t, second(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	for _, user := range []string{"running", "stopping", "doomed"} {
		if n := processes(d.stack, d.id(user)); n != 1 {
			t.Errorf("%s has %d processes", user, n)
		}
	}

	// The agent is made to register again. It follows no list of allocations whose
	// index is below the one it had: nothing that runs there is proven to have ended.
	d.kick()
	d.reported("running", "stopping", "stopped")
	wantCode(t, second(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	wantCode(t, second(d.r.admin().AdoptNode(ctx, "", node, false)), 504, "STOP_UNCONFIRMED")
	if got, err := d.c.Engine(ctx, "stopping"); err != nil || got.Status == "stopped" {
		t.Errorf("the engine whose process lives is %+v, %v", got, err)
	}

	// As docs/operations.md says: its agent is restarted, then its engines are adopted.
	if err := d.stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	if g, listed := d.r.unreachable(t)[d.id("doomed")]; !listed {
		t.Errorf("the unreachable volume is not listed: %+v", g)
	}
	d.adopt(node, node, client.NodeAdoption{Adopted: 3, Cleared: 1})
	if again, err := d.r.admin().AdoptNode(ctx, "", node, false); err != nil || again.Adopted+again.Left+again.Cleared+len(again.Failed) > 0 {
		t.Errorf("adopted once more: %+v, %v", again, err)
	}
	if err := gone(d.path("doomed"), true); err != nil {
		t.Error(err)
	}
	if unreachable := d.r.unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
	d.runs("running")
	for _, user := range []string{"stopping", "stopped"} {
		awaitEngine(t, d.c, user, "stopped", "")
		if _, err := d.c.Start(ctx, user); err != nil {
			t.Fatal(err)
		}
		d.runs(user)
	}
	// They are engines as all others.
	crash(t, isNow(t, d.c, "running", "running", ""))
	eventually(t, "it runs again", func() error {
		e, err := engineIs(t, d.c, "running", "running", "")
		if err != nil {
			return err
		}
		status, err := engineCall(ctx, e, e.APIKey, http.MethodGet, "/memory/export", nil, nil)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d, %w", status, err)
		}
		return nil
	})
	for _, user := range []string{"running", "stopping", "stopped"} {
		d.destroyed(user)
	}
}

// kick has the client's agent register with servers that do not know it.
func (d *stranded) kick() {
	d.t.Helper()
	eventually(d.t, "the agent registers", func() error {
		agent, err := nomad.NewClient(&nomad.Config{Address: d.stack.Addr(devstack.NomadClient(0))})
		if err != nil {
			return err
		}
		if _, err := agent.Nodes().Meta().Apply(&nomad.NodeMetaApplyRequest{Meta: map[string]*string{"orch_kick": ptr("1")}}, nil); err != nil {
			return err
		}
		nodes, _, err := d.s.nomad.Nodes().List(nil)
		if err != nil || len(nodes) == 0 || nodes[0].Status != nomad.NodeStatusReady {
			return fmt.Errorf("%d nodes, %w", len(nodes), err)
		}
		return nil
	})
}

// adopt adopts the engines of a node, in as many calls as it takes.
func (d *stranded) adopt(from, to string, want client.NodeAdoption) {
	d.t.Helper()
	var sum client.NodeAdoption
	began := time.Now()
	eventually(d.t, "the engines are adopted", func() error {
		done, err := d.r.admin().AdoptNode(d.t.Context(), from, to, false)
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
	for _, row := range d.r.audited(d.t, "adopt") {
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

// registered counts the volumes whose name ends so.
func (d *stranded) registered(suffix string) (n int) {
	d.t.Helper()
	volumes, _, err := d.s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
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

// A node's agent lost its state and registered as another node; the processes of
// before go on beside it. They end before their engines run on the new node.
func TestNomadClientLost(t *testing.T) {
	t.Parallel()
	d := newStranded(t, "client-lost/", "running", "stopped", "doomed")
	ctx, old := t.Context(), d.s.readyNode()
	if _, err := d.c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Lose(devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	if err := d.stack.Restart(ctx, devstack.NomadClient(0)); err != nil {
		t.Fatal(err)
	}
	awaitEngine(t, d.c, "running", "failed", "node_down")
	node := d.s.readyNode()
	if node == old {
		t.Fatal("the node kept its id")
	}
	wantCode(t, second(d.c.Start(ctx, "stopped")), 503, "CAPACITY_EXHAUSTED")
	wantCode(t, second(d.c.Start(ctx, "running")), 503, "CAPACITY_EXHAUSTED")
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"running", "doomed"} {
		if n := processes(d.stack, d.id(user)); n != 1 {
			t.Errorf("%s has %d processes", user, n)
		}
	}
	if _, listed := d.r.unreachable(t)[d.id("doomed")]; !listed {
		t.Error("the unreachable volume is not listed")
	}
	wantCode(t, second(d.r.admin().AdoptNode(ctx, node, old, false)), 400, "INVALID_REQUEST")
	// A call that is cut before it has named the volumes in the rows is gone on with.
	cut, cancel := context.WithCancel(ctx)
	answer := make(chan error, 1)
	go func() { answer <- second(d.r.admin().AdoptNode(cut, old, node, false)) }()
	eventually(t, "volumes are registered", func() error {
		if n := d.registered(".r2"); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	cancel()
	if err := <-answer; err == nil {
		t.Error("the call that was cut was answered")
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
	if left := d.s.traces(d.id("doomed")); len(left) > 0 {
		t.Errorf("left of the destroyed engine: %v", left)
	}
	for _, user := range []string{"running", "stopped"} {
		d.destroyed(user)
	}
	if unreachable := d.r.unreachable(t); len(unreachable) > 0 {
		t.Errorf("unreachable volumes: %+v", unreachable)
	}
}

// busyNode makes the node register anew all the time, as it does with each volume that
// is made or deleted there.
func busyNode(t *testing.T, s *stores) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	node := s.readyNode()
	var busy sync.WaitGroup
	busy.Go(func() {
		for ctx.Err() == nil {
			v := nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
				Name: "busy", PluginID: "mkdir", NodeID: node,
				RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-writer", AttachmentMode: "file-system"}},
			}}
			made, _, err := s.nomad.HostVolumes().Create(&v, nil)
			if err == nil {
				_, _, err = s.nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: made.Volume.ID}, nil)
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

// runsAnew waits until an engine runs as another process, with the same brain.
func runsAnew(t *testing.T, c *client.Client, user string) {
	t.Helper()
	eventually(t, "it runs as another process", func() error {
		e, err := engineIs(t, c, user, "running", "")
		if err != nil {
			return err
		}
		var m memory
		status, err := engineCall(t.Context(), e, e.APIKey, http.MethodGet, "/memory/export", nil, &m)
		if err != nil || status != http.StatusOK || len(m.Runs) < 2 {
			return fmt.Errorf("%d, %d runs, %w", status, len(m.Runs), err)
		}
		return nil
	})
}

// A job that somebody purges is forgotten by Nomad at once, while its process takes
// its time to end: a stop is not answered before that, and no process is started.
func TestJobPurgedByHand(t *testing.T) {
	t.Parallel()
	stack := ownStack(t)
	r := startService(t, stack, with(soon, "ORCH_CONSUL_PREFIX=purged/", "ORCH_VOLUME_POOL=2", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2"))
	s, ctx := openStores(t, stack), t.Context()
	c := r.product(t, map[string]any{"engine_image": "reference-engine.term-delay-20s"})
	watchBrains(t, stack)
	busyNode(t, s)
	for name, act := range map[string]func(t *testing.T, user string) error{
		"Stop": func(_ *testing.T, user string) error { return second(c.Stop(ctx, user)) },
		"Rotate": func(t *testing.T, user string) error {
			key, err := c.RotateKey(ctx, user)
			if err == nil {
				keyIs(t, awaitEngine(t, c, user, "running", ""), key, true)
			}
			return err
		},
		"Destroy": func(_ *testing.T, user string) error { return second(c.Destroy(ctx, user)) },
		"Restart": func(t *testing.T, user string) error { // by the service
			runsAnew(t, c, user)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := c.Provision(ctx, name, "")
			if err != nil {
				t.Fatal(err)
			}
			remember(t, e, e.APIKey, name)
			if _, _, err := s.nomad.Jobs().Deregister("engine-"+e.EngineID, true, nil); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if name == "Restart" {
				eventually(t, "it does not run", func() error {
					admitted, err := admit(ctx, c, name, false, false)
					if err == nil && admitted.Admitted {
						err = errors.New("its user is admitted")
					}
					return err
				})
				t.Logf("noticed after %s", time.Since(began).Round(time.Millisecond))
			}
			if err := act(t, name); err != nil {
				t.Fatal(err)
			}
			// A process may take 40 s; what else goes on on its node prolongs nothing.
			if took := time.Since(began); name != "Restart" && took > 100*time.Second {
				t.Errorf("done after %s", took)
			}
			want := 0
			if name == "Restart" || name == "Rotate" {
				want = 1
			}
			if n := processes(stack, e.EngineID); n != want {
				t.Errorf("it has %d processes", n)
			}
			switch name {
			case "Stop":
				if _, err := c.Start(ctx, name); err != nil {
					t.Fatal(err)
				}
				fallthrough
			case "Restart", "Rotate":
				e := isNow(t, c, name, "running", "")
				if err := export(t, e, e.APIKey).knows(name); err != nil {
					t.Error(err)
				}
				if _, err := c.Destroy(ctx, name); err != nil {
					t.Error(err)
				}
			}
			if left := s.traces(e.EngineID); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
