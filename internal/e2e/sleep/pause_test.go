package sleep

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// pausing is like sleepy, for a product whose engines are frozen.
var pausing = map[string]any{"idle_timeout_s": 1, "sleep_mode": "pause", "allowed_images": []string{"*", "*/*"}}

// pausable is one engine of a product with sleep_mode pause.
type pausable struct {
	t *testing.T
	*client.Client
	s      *harness.Stores
	prefix string
	e      *client.Engine // as it was provisioned
	pid    int
	runs   int
}

func newPausable(t *testing.T, r *harness.Replica, prefix, image string) *pausable {
	t.Helper()
	p := &pausable{t: t, Client: r.Product(t, pausing), s: harness.OpenStores(t, harness.Shared), prefix: prefix}
	p.e = harness.Provision(t, p.Client, "u", image)
	p.holds()
	harness.Remember(t, p.e, p.e.APIKey, "kept")
	p.pid, p.runs = p.process(p.e), 1
	p.lets()
	return p
}

// process returns the pid of the engine's process on the machine.
func (p *pausable) process(e *client.Engine) int {
	p.t.Helper()
	return harness.Inspect(p.t, e).State.Pid
}

func (p *pausable) row() *engine.Row {
	p.t.Helper()
	rows, err := p.s.Engines(p.prefix)
	if err != nil || len(rows) != 1 {
		p.t.Fatalf("%d rows, %v", len(rows), err)
	}
	return rows[0]
}

// freezes waits until the engine is paused.
func (p *pausable) freezes() {
	p.t.Helper()
	harness.Eventually(p.t, "the idle engine sleeps", func() error { return harness.InState(p.t, p.Client, "u", "sleeping") })
	harness.Eventually(p.t, "its process is stopped", func() error { // the process stops when it is next scheduled
		if got := harness.ProcessState(p.pid); got != "T" {
			return fmt.Errorf("it is in state %q", got)
		}
		return nil
	})
	if row := p.row(); row.Frozen == nil || row.URL != "" || row.AllocID != "" {
		p.t.Fatalf("its row contains %+v", row)
	}
}

// holds keeps the engine awake, which has just been woken, until lets is called. On a busy
// machine it may be frozen again by then; it is woken once more.
func (p *pausable) holds() {
	p.t.Helper()
	harness.Eventually(p.t, "it is kept awake", func() error {
		_, err := p.KeepAwake(p.t.Context(), "u", time.Hour)
		if errors.Is(err, client.ErrEngineNotRunning) || errors.Is(err, client.ErrEngineBusy) {
			return errors.Join(err, harness.ErrOf(harness.Admit(p.t.Context(), p.Client, "u", false, true)))
		}
		return err
	})
}

// lets lets the engine be frozen again when it is idle.
func (p *pausable) lets() {
	p.t.Helper()
	if _, err := p.KeepAwake(p.t.Context(), "u", time.Second); err != nil {
		p.t.Fatal(err)
	}
}

// wakes admits its user, and checks that process, brain and key are the same.
func (p *pausable) wakes() {
	p.t.Helper()
	began := time.Now()
	a, err := harness.Admit(p.t.Context(), p.Client, "u", false, true)
	if err != nil || !a.Admitted {
		p.t.Fatalf("admit: %+v, %v", a, err)
	}
	p.t.Logf("woken after %s", time.Since(began))
	p.holds()
	if a.Engine.URL != p.e.URL || p.process(a.Engine) != p.pid {
		p.t.Errorf("woken with %+v", a.Engine)
	}
	p.wantKept(a.Engine)
	p.lets()
}

// startsAnew admits its user, and checks that the process is new, and brain and key are the
// same.
func (p *pausable) startsAnew() {
	p.t.Helper()
	a, err := harness.Admit(p.t.Context(), p.Client, "u", false, true)
	if err != nil || !a.Admitted {
		p.t.Fatalf("admit: %+v, %v", a, err)
	}
	p.holds()
	pid := p.process(a.Engine)
	if pid == p.pid {
		p.t.Error("it is the process of before")
	}
	p.e, p.pid = a.Engine, pid
	p.runs = len(harness.Export(p.t, p.e, p.e.APIKey).Runs) // Nomad may have restarted it meanwhile
	p.wantKept(a.Engine)
	p.lets()
}

func (p *pausable) wantKept(e *client.Engine) {
	p.t.Helper()
	if e.APIKey != p.e.APIKey || e.EngineID != p.e.EngineID {
		p.t.Errorf("now it is %+v", e)
	}
	m := harness.Export(p.t, e, e.APIKey)
	if err := m.Knows("kept"); err != nil || len(m.Runs) != p.runs {
		p.t.Errorf("it ran %d times, want %d; %v", len(m.Runs), p.runs, err)
	}
	if row := p.row(); row.Frozen != nil || row.State != engine.Running {
		p.t.Errorf("its row contains %+v", row)
	}
}

// wantGrace checks that the engine's last run but one ended gracefully: a killed process
// writes no end into the brain.
func (p *pausable) wantGrace(e *client.Engine) {
	p.t.Helper()
	m := harness.Export(p.t, e, p.e.APIKey)
	if n := len(m.Runs); n < 2 || m.Runs[n-2].EndedAt == nil {
		p.t.Errorf("it did not end gracefully: %+v", m.Runs)
	}
}

func pauseService(t *testing.T, prefix string, vars map[string]string) *harness.Replica {
	t.Helper()
	all := map[string]string{
		"ORCH_CONSUL_PREFIX": prefix, "ORCH_HEALTH_CHECK_INTERVAL_S": "1", "ORCH_HEALTH_CHECK_TIMEOUT_S": "1",
		"ORCH_HEALTH_MAX_FAILURES": "1", "ORCH_RECONCILE_INTERVAL_S": "1",
	}
	for k, v := range vars {
		all[k] = v
	}
	return harness.StartService(t, harness.Shared, harness.Docker.With(all))
}

func TestPause(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	const prefix = "pause/"
	r := pauseService(t, prefix, nil)
	p, ctx := newPausable(t, r, prefix, ""), t.Context()
	p.freezes()

	// Its check fails, without consequences.
	harness.Eventually(t, "the check of the frozen engine fails", func() error {
		checks, _, err := p.s.Consul.Health().Checks("engine-"+p.e.EngineID, nil)
		if err == nil && checks.AggregatedStatus() != consul.HealthCritical {
			err = fmt.Errorf("it is %s", checks.AggregatedStatus())
		}
		return err
	})
	passes := r.Passes()
	harness.Eventually(t, "three reconcile passes", func() error {
		if now := r.Passes(); now < passes+3 {
			return fmt.Errorf("%d", now-passes)
		}
		return nil
	})
	p.freezes()
	if count, running := p.s.Processes(p.e.EngineID); count != 1 || running != 1 {
		t.Errorf("paused with count %d and %d allocations that run", count, running)
	}
	if got, err := p.Engine(ctx, "u"); err != nil || got.URL != "" || got.APIKey != p.e.APIKey || got.LastHealthAt == nil {
		t.Errorf("paused: %+v, %v", got, err)
	}
	if st, err := p.Status(ctx); err != nil || st.UnhealthyCount != 0 || st.Health != "ok" {
		t.Errorf("status: %+v, %v", st, err)
	}
	_, err := p.RotateKey(ctx, "u")
	harness.WantCode(t, err, 409, "ENGINE_NOT_RUNNING")
	if a, err := harness.Admit(ctx, p.Client, "u", false, false); err != nil || a.Reason != "engine_sleeping" {
		t.Errorf("admit without auto_wake: %+v, %v", a, err)
	}
	for range 5 {
		p.wakes()
		p.freezes()
	}
	for _, action := range []string{"sleep", "wake"} {
		rows, _ := harness.AuditLog(t, p.Client, "?action="+action)
		for _, row := range rows {
			if row.DurationMS == nil {
				continue // it is reported a moment later
			}
			if row.Metadata["why"] == "reconcile" && row.Outcome == "ENGINE_BUSY" {
				continue // a pass read it between two changes, and its action was refused
			}
			if row.Outcome != "ok" || row.Metadata["paused"] != true {
				t.Errorf("audit row %+v", row)
			}
		}
		if len(rows) < 5 {
			t.Errorf("%d audit rows of %s", len(rows), action)
		}
	}
	if rows, _ := harness.AuditLog(t, p.Client, "?action=health_failed"); len(rows) != 0 {
		t.Errorf("failed: %+v", rows)
	}

	// A start wakes it too, and its rotation works.
	if e, err := p.Start(ctx, "u"); err != nil || e.URL != p.e.URL {
		t.Fatalf("start: %+v, %v", e, err)
	}
	p.holds()
	if _, err := p.RotateKey(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	p.runs++
	if p.e, err = p.Engine(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	p.pid = p.process(p.e)
	p.lets()
	p.freezes()
	p.wakes()

	// An engine that missed a rollout of provider keys gets them.
	p.freezes()
	rollout := &consul.KVPair{Key: prefix + "provider-keys", Value: fmt.Appendf(nil, `{"target_version":%d,"halted":true}`, p.row().EnvVersion+1)}
	if _, err := p.s.Consul.KV().Put(rollout, nil); err != nil {
		t.Fatal(err)
	}
	p.startsAnew()
	if _, err := p.s.Consul.KV().Delete(rollout.Key, nil); err != nil {
		t.Fatal(err)
	}

	// A stop ends the process gracefully.
	p.freezes()
	if _, err := p.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if got := harness.ProcessState(p.pid); got != "" {
		t.Errorf("stopped, its process is in state %q", got)
	}
	if row := p.row(); row.State != engine.Stopped || row.Frozen != nil {
		t.Errorf("stopped: %+v", row)
	}
	if _, err := p.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	p.holds()
	e, err := p.Engine(ctx, "u")
	if err != nil {
		t.Fatal(err)
	}
	p.wantGrace(e)
	p.e, p.pid = e, p.process(e)
	p.lets()

	// So does a destroy.
	p.freezes()
	code := p.exits()
	if _, err := p.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if got := harness.ProcessState(p.pid); got != "" {
		t.Errorf("destroyed, its process is in state %q", got)
	}
	if code := code(); code != "0" {
		t.Errorf("its process ended with %s", code)
	}
	if traces := p.s.Traces(p.e.EngineID); len(traces) > 0 {
		t.Errorf("left: %v", traces)
	}
	if err := harness.ErrOf(p.Provision(ctx, "u", "")); err != nil {
		t.Error(err)
	}
}

// TestPausedIsResized: if the policy of a paused engine gets other resources, the engine
// gets them when it is woken, in a new process.
func TestPausedIsResized(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	const prefix = "pause-resized/"
	r := pauseService(t, prefix, map[string]string{"ORCH_VOLUME_POOL": "1"})
	p, ctx := newPausable(t, r, prefix, ""), t.Context()
	p.freezes()
	memory, cpu := 48, 12
	products, err := r.Admin().Products(ctx)
	if err != nil || len(products.Products) != 1 {
		t.Fatalf("%+v, %v", products, err)
	}
	of := products.Products[0]
	of.Policy.MemoryMB, of.Policy.CPUMHz = &memory, &cpu
	if _, err := r.Admin().SetPolicy(ctx, of.ProductID, of.Policy); err != nil {
		t.Fatal(err)
	}
	p.startsAnew()
	if has := p.row().Resources; has.MemoryMB != memory || has.CPUMHz != cpu {
		t.Errorf("its row has %+v", has)
	}
	if h := harness.Inspect(t, p.e).HostConfig; h.Memory != int64(memory)<<20 {
		t.Errorf("its container has %d bytes of memory", h.Memory)
	}
	p.freezes()
	p.wakes() // nothing has changed since
}

// exits returns a function that waits for the end of the engine's container and returns the
// exit code that docker reports.
func (p *pausable) exits() (code func() string) {
	p.t.Helper()
	id, out := harness.Inspect(p.t, p.e).ID, make(chan string, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		b, err := exec.CommandContext(p.t.Context(), "docker", "wait", id).Output()
		if err != nil {
			b = []byte(err.Error())
		}
		out <- strings.TrimSpace(string(b))
	})
	p.t.Cleanup(waiting.Wait)
	return func() string { return <-out }
}

// Whatever happens to a paused engine's process, the engine stays asleep, and can be woken
// as usual.
func TestPauseLost(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	for name, lose := range map[string]func(*pausable){
		"Killed": func(p *pausable) {
			if out, err := exec.Command("docker", "kill", "-s", "KILL", harness.Inspect(p.t, p.e).ID).CombinedOutput(); err != nil {
				p.t.Fatalf("%v: %s", err, out)
			}
		},
		"StoppedByHand": func(p *pausable) {
			if _, err := p.s.Nomad.Allocations().Stop(&nomad.Allocation{ID: p.row().Frozen.AllocID}, nil); err != nil {
				p.t.Fatal(err)
			}
		},
		"RestartedByHand": func(p *pausable) {
			if err := p.s.Nomad.Allocations().Restart(&nomad.Allocation{ID: p.row().Frozen.AllocID}, "engine", nil); err != nil {
				p.t.Fatal(err)
			}
		},
		"WokenByHand": func(p *pausable) {
			if out, err := exec.Command("docker", "kill", "-s", "CONT", harness.Inspect(p.t, p.e).ID).CombinedOutput(); err != nil {
				p.t.Fatalf("%v: %s", err, out)
			}
		},
		"JobPurged": func(p *pausable) {
			if _, _, err := p.s.Nomad.Jobs().Deregister("engine-"+p.e.EngineID, true, nil); err != nil {
				p.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := "pause-lost-" + strings.ToLower(name) + "/"
			p := newPausable(t, pauseService(t, prefix, nil), prefix, "")
			p.freezes()
			code := p.exits()
			lose(p)
			harness.Eventually(t, "it sleeps without a process", func() error {
				row := p.row()
				if row.State != engine.Sleeping || row.Op != nil || row.Frozen != nil {
					return fmt.Errorf("%s, %+v, %+v", row.State, row.Op, row.Frozen)
				}
				return nil
			})
			if name != "JobPurged" {
				if err := p.s.WantSound(p.row()); err != nil {
					t.Error(err)
				}
			}
			if got := code(); name == "StoppedByHand" && got != "0" {
				t.Errorf("its process ended with %s", got)
			}
			p.startsAnew()
			p.freezes()
			if name == "Killed" { // and the user is faster than the service
				lose(p)
				p.startsAnew()
				p.freezes()
			}
			p.wakes()
		})
	}
}

// Engines that cannot be frozen are stopped: those of another driver, and those whose first
// process is not the serving one.
func TestPauseFallsBack(t *testing.T) {
	t.Parallel()
	t.Run("raw_exec", func(t *testing.T) {
		t.Parallel()
		r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
		c, s := r.Product(t, pausing), harness.OpenStores(t, harness.Shared)
		e := harness.Provision(t, c, "u", "")
		harness.Eventually(t, "the idle engine sleeps", func() error { return harness.InState(t, c, "u", "sleeping") })
		if count, running := s.Processes(e.EngineID); count != 0 || running != 0 {
			t.Errorf("asleep with count %d and %d allocations that run", count, running)
		}
		if a, err := harness.Admit(t.Context(), c, "u", false, true); err != nil || !a.Admitted {
			t.Errorf("admit: %+v, %v", a, err)
		}
	})
	t.Run("Supervised", func(t *testing.T) {
		harness.NeedDocker(t)
		t.Parallel()
		const prefix = "pause-supervised/"
		p := newPausable(t, pauseService(t, prefix, nil), prefix, supervisedImage(t))
		harness.Eventually(t, "the idle engine sleeps without a process", func() error {
			if row := p.row(); row.State != engine.Sleeping || row.Frozen != nil {
				return fmt.Errorf("%s, %+v", row.State, row.Frozen) // a slow response counts as none at first
			}
			return nil
		})
		if count, running := p.s.Processes(p.e.EngineID); count != 0 || running != 0 {
			t.Errorf("asleep with count %d and %d allocations that run", count, running)
		}
		a, err := harness.Admit(t.Context(), p.Client, "u", false, true)
		if err != nil || !a.Admitted {
			t.Fatalf("admit: %+v, %v", a, err)
		}
		p.wantGrace(a.Engine)
	})
}

// supervisedImage is an engine that is not the first process of its container.
func supervisedImage(t *testing.T) string {
	t.Helper()
	const image = "orch/reference-engine:supervised"
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "DOCKER_BUILDKIT=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("go", "build", "-o", filepath.Join(dir, "supervisor"), "./testdata/supervisor")
	file := "FROM " + harness.DockerImage + "\nCOPY supervisor /supervisor\nENTRYPOINT [\"/supervisor\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	run("docker", "build", "-q", "-t", image, dir)
	return image
}

// A late signal, from a replica that was paused, stops an engine in use. It continues when
// its check fails.
func TestStoppedByMistake(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	const prefix = "pause-mistake/"
	r := pauseService(t, prefix, map[string]string{"ORCH_RESTART_MAX_ATTEMPTS": "0"})
	p := newPausable(t, r, prefix, "")
	p.holds()
	if err := p.s.Nomad.Allocations().Signal(&nomad.Allocation{ID: p.row().AllocID}, nil, "", "SIGSTOP"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "it runs again", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		status, err := harness.EngineCall(ctx, p.e, p.e.APIKey, http.MethodGet, "/health", nil, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d", status)
		}
		return err
	})
	if p.process(p.e) != p.pid {
		t.Error("it is another process")
	}
	p.wantKept(p.e)
}

// TestPausedOwnerOfASignal pauses a replica just before it sends a signal, which only its
// lease guards. When it resumes, it does not undo what another replica did meanwhile.
func TestPausedOwnerOfASignal(t *testing.T) {
	harness.NeedDocker(t)
	t.Parallel()
	for step, tc := range map[string]struct {
		stopped bool // the engine's process must stay so
		then    func(*pausable)
	}{
		"sleep/freeze": {false, func(p *pausable) {
			p.wakes()
			p.holds()
		}},
		"start/thaw": {true, func(p *pausable) { p.freezes() }},
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			prefix, database := "pause-owner-"+strings.ReplaceAll(step, "/", "-")+"/", harness.Postgres.Database(t)
			ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
			a := harness.StartFaulty(t, prefix, database, "pause "+step+"/fenced", harness.Docker.Environ()...)
			product, err := a.RegisterProduct(ctx, "pausing", "Pausing", harness.PolicyOf(t, pausing))
			if err != nil {
				t.Fatal(err)
			}
			a.PlatformKey = product.PlatformAPIKey
			p := &pausable{t: t, Client: &client.Client{BaseURL: a.BaseURL, PlatformKey: a.PlatformKey}, s: s, prefix: prefix, runs: 1}
			if p.e, err = p.Provision(ctx, "u", ""); err != nil {
				t.Fatal(err)
			}
			if step == "start/thaw" { // nothing pauses the replica before it freezes the engine
				if _, err := p.KeepAwake(ctx, "u", time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			harness.Remember(t, p.e, p.e.APIKey, "kept")
			p.pid = p.process(p.e)
			answered := make(chan error, 1)
			if step == "start/thaw" {
				p.lets()
				p.freezes()
				go func() { answered <- harness.ErrOf(a.Start(ctx, "u")) }()
			}
			a.AwaitPause(t)
			row := p.row()
			if row.Op == nil || !strings.HasSuffix(step, "/"+row.Op.Step) {
				t.Fatalf("while it is paused: %+v", row.Op)
			}
			s.EndSession(prefix, row.Op.Owner)
			b := harness.StartFaulty(t, prefix, database, "", harness.Docker.Environ()...)
			p.BaseURL = b.BaseURL
			harness.Eventually(t, "the other replica ends the operation", func() error {
				if row := p.row(); row.Op != nil {
					return fmt.Errorf("%s, %+v", row.State, row.Op)
				}
				return nil
			})
			tc.then(p)

			a.Signal(t, syscall.SIGCONT)
			harness.Eventually(t, "the first replica says that it was superseded", func() error {
				if a.Log.Count("op=", "by=") == 0 {
					return errors.New("it does not")
				}
				return nil
			})
			if step == "start/thaw" {
				harness.WantCode(t, <-answered, 503, "BACKEND_UNAVAILABLE")
			}
			if got := harness.ProcessState(p.pid); got == "" || (got == "T") != tc.stopped {
				t.Errorf("its process is in state %q, want it stopped: %t", got, tc.stopped)
			}
			if row.EngineID != p.row().EngineID {
				t.Error("it is another engine")
			}
			if _, err := p.Destroy(ctx, "u"); err != nil {
				t.Error(err)
			}
		})
	}
}
