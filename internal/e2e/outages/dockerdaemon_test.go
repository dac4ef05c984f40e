package outages

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// watchContainers fails the test if an engine has two processes at any time.
func (d *stranded) watchContainers() {
	done := make(chan struct{})
	var watching sync.WaitGroup
	ids := map[string]string{}
	for user, e := range d.engines {
		ids[user] = e.EngineID
	}
	watching.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for user, id := range ids {
				if pids := harness.Containers(id); len(pids) > 1 {
					d.t.Errorf("the engine of %s has processes %v", user, pids)
					delete(ids, user)
				}
			}
		}
	})
	d.t.Cleanup(func() {
		close(done)
		watching.Wait()
		for _, e := range d.engines { // left by a failed test
			for _, pid := range harness.Containers(e.EngineID) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
}

// wantContainers fails unless the engine of a user has this number of processes.
func (d *stranded) wantContainers(user string, want int) {
	d.t.Helper()
	if pids := harness.Containers(d.id(user)); len(pids) != want {
		d.t.Errorf("the engine of %s has processes %v, want %d", user, pids, want)
	}
}

// works fails unless the engine of a user runs eventually, with its memory.
func (d *stranded) works(user string) {
	d.t.Helper()
	harness.Eventually(d.t, user+" works", func() error {
		e, err := harness.EngineIs(d.t, d.c, user, "running", "")
		if err != nil {
			return err
		}
		var m harness.Memory
		status, err := harness.EngineCall(d.t.Context(), e, d.engines[user].APIKey, http.MethodGet, "/memory/export", nil, &m)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d, %w", status, err)
		}
		return m.Knows(user)
	})
	d.wantContainers(user, 1)
}

// newContained starts a stack with a separate docker daemon, and an engine per user.
func newContained(t *testing.T, liveRestore bool, prefix string, users ...string) (*harness.Daemon, *stranded) {
	t.Helper()
	dd := harness.NewDaemon(t, "--live-restore="+strconv.FormatBool(liveRestore))
	stack := harness.OwnStack(t, devstack.Config{DockerSocket: dd.Address()})
	d := &stranded{t: t, stack: stack, s: harness.OpenStores(t, stack)}
	d.r = harness.StartService(t, stack, harness.Docker.With(harness.With(harness.Soon, "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VOLUME_POOL=3", "ORCH_IDLE_TIMEOUT_S=0", "ORCH_RECONCILE_INTERVAL_S=2")))
	d.c = d.r.Product(t, nil)
	d.provision(users...)
	return dd, d
}

func (d *stranded) provision(users ...string) {
	d.t.Helper()
	d.engines = map[string]*client.Engine{}
	for _, user := range users {
		// Nomad probes its docker driver only now and then, and may not know yet that it
		// works again.
		harness.Eventually(d.t, "its node has the docker driver", func() (err error) {
			d.engines[user], err = d.c.Provision(d.t.Context(), user, "")
			return err
		})
		harness.Remember(d.t, d.engines[user], d.engines[user].APIKey, user)
	}
	d.paths = directories(d.s)
	d.watchContainers()
}

// A docker daemon dies, in all variants of what survives and what Nomad reports: engines
// reported as stopped or destroyed really are, and no brain has two processes.
func TestDockerDaemonDies(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	for name, live := range map[string]bool{"LiveRestore": true, "Plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dd, d := newContained(t, live, "daemon-"+strings.ToLower(name)+"/", "on", "stop", "doomed")
			d.survives(dd, "killed", func() { dd.End(syscall.SIGKILL) })
			d.provision("on", "stop", "doomed")
			d.survives(dd, "terminated", func() { dd.End(syscall.SIGTERM) })
			if !live { // it reports that it has killed containers, but has not
				d.provision("on", "stop", "doomed")
				d.survives(dd, "terminated with containerd", func() { dd.End(syscall.SIGTERM, dd.Containerd()) })
			}
		})
	}
}

func (d *stranded) survives(dd *harness.Daemon, how string, end func()) {
	d.t.Helper()
	ctx := d.t.Context()
	end()
	began := time.Now()
	var asked sync.WaitGroup
	asked.Go(func() {
		if err := harness.ErrOf(d.c.Stop(ctx, "stop")); err != nil {
			d.t.Errorf("%s: stop: %v", how, err)
		}
		d.wantContainers("stop", 0)
		d.t.Logf("%s: stopped after %s", how, time.Since(began).Round(100*time.Millisecond))
	})
	asked.Go(func() {
		if err := harness.ErrOf(d.c.Destroy(ctx, "doomed")); err != nil {
			d.t.Errorf("%s: destroy: %v", how, err)
		}
		if err := gone(d.path("doomed"), true); err == nil {
			d.wantContainers("doomed", 0)
		}
		d.t.Logf("%s: destroyed after %s", how, time.Since(began).Round(100*time.Millisecond))
	})
	asked.Wait()
	harness.AwaitEngine(d.t, d.c, "on", "failed", "")
	if how != "terminated" { // long enough for Nomad to give up
		harness.Eventually(d.t, "Nomad takes the engine's process for ended", func() error {
			if _, running := d.s.Processes(d.id("on")); running > 0 {
				return fmt.Errorf("%d allocations run", running)
			}
			return nil
		})
	}

	dd.Start()
	began = time.Now()
	d.works("on")
	d.t.Logf("%s: works %s after the daemon is back", how, time.Since(began).Round(100*time.Millisecond))
	d.wantContainers("stop", 0)
	harness.IsNow(d.t, d.c, "stop", "stopped", "")
	harness.Eventually(d.t, "its node has the docker driver again", func() error { return harness.ErrOf(d.c.Start(ctx, "stop")) })
	d.works("stop")
	d.endsWell("on", "stop")
	d.cleared("doomed")
}

// endsWell destroys engines, and fails unless nothing remains of them.
func (d *stranded) endsWell(users ...string) {
	d.t.Helper()
	for _, user := range users {
		if _, err := d.c.Destroy(d.t.Context(), user); err != nil {
			d.t.Fatal(err)
		}
		d.wantContainers(user, 0)
		d.cleared(user)
	}
}

// cleared waits until nothing remains of a user's destroyed engine.
func (d *stranded) cleared(user string) {
	d.t.Helper()
	harness.Eventually(d.t, "nothing is left of "+user, func() error {
		if unreachable, left := d.r.Unreachable(d.t), d.s.Traces(d.id(user)); len(unreachable)+len(left) > 0 {
			return fmt.Errorf("unreachable volumes %+v, %v", unreachable, left)
		}
		return gone(d.path(user), true)
	})
	d.wantContainers(user, 0)
}

// If the node cannot prove that a container has ended, a stop is not confirmed, and a
// destroy keeps the volume. Both are carried out when the node can.
func TestDockerEndUnproven(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	dd, d := newContained(t, true, "daemon-unproven/", "on", "stop", "doomed")
	ctx, node := t.Context(), d.s.ReadyNode()
	eligible := func(is bool) {
		t.Helper()
		if _, err := d.s.Nomad.Nodes().ToggleEligibility(node, is, nil); err != nil {
			t.Fatal(err)
		}
	}
	dd.End(syscall.SIGKILL)
	eligible(false)
	harness.WantCode(t, harness.ErrOf(d.c.Stop(ctx, "stop")), 504, "STOP_UNCONFIRMED")
	began := time.Now()
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("destroyed after %s", took)
	}
	if _, listed := d.r.Unreachable(t)[d.id("doomed")]; !listed {
		t.Error("the volume of the process that lives is not listed")
	}
	if err := gone(d.path("doomed"), false); err != nil {
		t.Error(err)
	}
	harness.AwaitEngine(t, d.c, "on", "failed", "crashed")
	err := harness.Patiently(t, "a start", func() error { return harness.ErrOf(d.c.Start(ctx, "on")) })
	harness.WantCode(t, err, 503, "CAPACITY_EXHAUSTED")
	for user := range d.engines {
		d.wantContainers(user, 1)
	}

	dd.Start()
	eligible(true)
	harness.AwaitEngine(t, d.c, "stop", "stopped", "")
	d.wantContainers("stop", 0)
	d.works("on")
	d.cleared("doomed")
	d.endsWell("on", "stop")

	// An admin's confirmation is sufficient too.
	d.provision("stop", "doomed")
	dd.End(syscall.SIGKILL)
	eligible(false)
	harness.WantCode(t, harness.ErrOf(d.c.Stop(ctx, "stop")), 504, "STOP_UNCONFIRMED")
	if _, err := d.c.Destroy(ctx, "doomed"); err != nil {
		t.Fatal(err)
	}
	for _, e := range d.engines {
		for _, pid := range harness.Containers(e.EngineID) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := d.r.Admin().AdoptNode(ctx, "", node, true); err != nil {
		t.Fatal(err)
	}
	harness.AwaitEngine(t, d.c, "stop", "stopped", "")
	d.cleared("doomed")
	dd.Start()
	eligible(true)
	d.endsWell("stop")
}

// TestDockerDaemonIsSaidToBeDown: while it is down, the error says so instead of naming a
// lack of capacity, nothing is changed, and everything works when it is back.
func TestDockerDaemonIsSaidToBeDown(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	dd, d := newContained(t, false, "daemon-down/", "on", "off")
	ctx := t.Context()
	if _, err := d.c.Stop(ctx, "off"); err != nil {
		t.Fatal(err)
	}
	dd.End(syscall.SIGTERM)
	// The service also tries to start failed engines.
	stop := func() {
		t.Helper()
		harness.Eventually(t, "it is stopped", func() error {
			var refused *client.Error
			err := harness.ErrOf(d.c.Stop(ctx, "off"))
			if errors.As(err, &refused) && refused.Code == "ENGINE_NOT_RUNNING" {
				return nil
			}
			return err
		})
	}
	// Until Nomad knows, a start fails because of the node's driver.
	harness.Eventually(t, "Nomad knows that the driver is away", func() error {
		err := harness.ErrOf(d.c.Start(ctx, "off"))
		var refused *client.Error
		switch {
		case !errors.As(err, &refused) || strings.Contains(refused.Message, "missing drivers"):
			t.Fatalf("started: %v", err)
		case refused.Code == "ENGINE_BOOT_FAILED":
			harness.AwaitEngine(t, d.c, "off", "failed", "driver_error")
			stop()
			return err
		case refused.Code == "ENGINE_BUSY":
			stop()
			return err
		}
		return nil
	})
	refused := harness.WantCode(t, harness.ErrOf(d.c.Start(ctx, "off")), 503, "CAPACITY_EXHAUSTED")
	if !strings.Contains(refused.Message, "docker daemon is down") || strings.Contains(refused.Message, "missing drivers") || strings.Contains(refused.Message, "enough capacity") {
		t.Errorf("a start got %q", refused.Message)
	}
	harness.IsNow(t, d.c, "off", "stopped", "")
	refused = harness.WantCode(t, harness.ErrOf(d.c.Provision(ctx, "new", "")), 503, "CAPACITY_EXHAUSTED")
	if !strings.Contains(refused.Message, "docker daemon is down") {
		t.Errorf("a provision got %q", refused.Message)
	}
	harness.WantCode(t, harness.ErrOf(d.c.Engine(ctx, "new")), 404, "ENGINE_NOT_FOUND")
	harness.AwaitEngine(t, d.c, "on", "failed", "") // except while it is retried
	if status, err := d.c.Status(ctx); err != nil || status.ByStatus["running"] != 0 || status.ByStatus["stopped"] != 1 || status.Total != 2 {
		t.Errorf("the status is %+v, %v", status, err)
	}

	dd.Start()
	d.works("on")
	harness.Eventually(t, "a provision finds the driver again", func() error { return harness.ErrOf(d.c.Provision(ctx, "new", "")) })
	harness.Eventually(t, "a start finds the driver again", func() error { return harness.ErrOf(d.c.Start(ctx, "off")) })
	d.works("off")
	if _, err := d.c.Destroy(ctx, "new"); err != nil {
		t.Error(err)
	}
	d.endsWell("on", "off")
}
