package faults

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/testpg"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
)

// jobVersion identifies the state of an engine's job; it differs after every change.
func jobVersion(s *harness.Stores, engineID string) string {
	s.T.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+engineID, nil)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("index %d, count %d", *job.JobModifyIndex, *job.TaskGroups[0].Count)
}

// jobFileThatIsRefused can be parsed, but Nomad refuses to register the job.
func jobFileThatIsRefused(t *testing.T) string {
	t.Helper()
	const group = `group "engine" {`
	edited := strings.Replace(nomadjobs.Engine, group, "priority = 5000\n\n  "+group, 1)
	file := filepath.Join(t.TempDir(), "engine.nomad.hcl")
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestPausedOwner pauses a replica in the middle of an operation, after it verified that it
// may act and before it acts. Another replica ends the operation, and clients continue to
// use the engine there. When the first replica resumes, it changes nothing, logs that it
// was superseded, and continues to serve.
func TestPausedOwner(t *testing.T) {
	testpg.Need(t)
	t.Parallel()
	ctx := t.Context()
	provision := func(c *client.Client) error { return harness.ErrOf(c.Provision(ctx, laneUser, "")) }
	start := func(c *client.Client) error { return harness.ErrOf(c.Start(ctx, laneUser)) }
	stop := func(c *client.Client) error { return harness.ErrOf(c.Stop(ctx, laneUser)) }
	rotate := func(c *client.Client) error { return harness.ErrOf(c.RotateKey(ctx, laneUser)) }
	destroy := func(c *client.Client) error { return harness.ErrOf(c.Destroy(ctx, laneUser)) }
	type steps []func(*client.Client) error
	for point, tc := range map[string]struct {
		setup steps // on the first replica
		cut   func(*client.Client) error
		state engine.State // in which the other replica leaves the engine
		then  steps        // on the other replica
		env   func(*testing.T) []string
		audit string // the outcome of the interrupted operation; empty: ok
	}{
		"provision/volume/fenced":   {cut: provision, state: engine.Running, then: steps{stop}},
		"provision/variable/fenced": {cut: provision, state: engine.Running, then: steps{rotate}},
		"provision/register/fenced": {cut: provision, state: engine.Running, then: steps{stop}},
		"provision/boot/before":     {cut: provision, state: engine.Running, then: steps{stop}},
		"start/register/fenced":     {setup: steps{provision, stop}, cut: start, state: engine.Running, then: steps{stop}},
		"start/register/fenced, undone": {
			setup: steps{provision, stop}, cut: start, state: engine.Stopped, audit: "BACKEND_UNAVAILABLE",
			env: func(t *testing.T) []string { return []string{"ORCH_ENGINE_JOB_FILE=" + jobFileThatIsRefused(t)} },
		},
		"stop/scale-down/fenced": {setup: steps{provision}, cut: stop, state: engine.Stopped, then: steps{start}},
		// Before it verifies: what it reads after resuming is current, but no longer its
		// own.
		"provision/register/before":  {cut: provision, state: engine.Running, then: steps{stop}},
		"start/register/before":      {setup: steps{provision, stop}, cut: start, state: engine.Running, then: steps{stop}},
		"stop/scale-down/before":     {setup: steps{provision}, cut: stop, state: engine.Stopped, then: steps{start}},
		"rotate_key/variable/before": {setup: steps{provision}, cut: rotate, state: engine.Running, then: steps{rotate}},
		"stop/drain/before":          {setup: steps{provision}, cut: stop, state: engine.Stopped, then: steps{start}},
		"rotate_key/new-key/fenced":  {setup: steps{provision}, cut: rotate, state: engine.Running, then: steps{rotate}},
		"rotate_key/variable/fenced": {setup: steps{provision}, cut: rotate, state: engine.Running, then: steps{rotate, rotate}},
		"rotate_key/retire/before":   {setup: steps{provision}, cut: rotate, state: engine.Running, then: steps{rotate}},
		"destroy/scale-down/fenced":  {setup: steps{provision}, cut: destroy, then: steps{provision}},
		"destroy/volume/before":      {setup: steps{provision}, cut: destroy, then: steps{provision}},
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			armed, _, _ := strings.Cut(point, ",")
			prefix, database, s := "paused-"+strings.NewReplacer("/", "-", ", ", "-").Replace(point)+"/", harness.Postgres.Database(t), harness.OpenStores(t, harness.Shared)
			var pool []string
			if strings.HasPrefix(point, "provision/volume/") {
				pool = []string{"ORCH_VOLUME_POOL=0"}
			}
			a := harness.StartFaulty(t, prefix, database, "pause "+armed, pool...)
			product, err := a.RegisterProduct(ctx, "paused", "Paused", harness.PolicyOf(t, harness.AnyImage))
			if err != nil {
				t.Fatal(err)
			}
			a.PlatformKey = product.PlatformAPIKey
			for _, step := range tc.setup {
				if err := step(a.Client); err != nil {
					t.Fatal(err)
				}
			}
			answered := make(chan error, 1)
			go func() { answered <- tc.cut(a.Client) }()
			a.AwaitPause(t)
			rows, err := s.Engines(prefix)
			if err != nil || len(rows) != 1 || rows[0].Op == nil {
				t.Fatalf("while it is paused: %+v, %v", rows, err)
			}
			cut := rows[0]
			s.EndSession(prefix, cut.Op.Owner)

			env := pool
			if tc.env != nil {
				env = tc.env(t)
			}
			b := harness.StartFaulty(t, prefix, database, "", env...)
			b.PlatformKey = product.PlatformAPIKey
			harness.Eventually(t, "the other replica ends the operation", func() error {
				rows, err := s.Engines(prefix)
				if err != nil {
					return err
				}
				for _, row := range rows {
					if row.Op != nil || row.State != tc.state {
						return fmt.Errorf("%s, %+v", row.State, row.Op)
					}
				}
				if (len(rows) == 0) != (tc.state == "") {
					return fmt.Errorf("%d rows", len(rows))
				}
				return nil
			})
			for _, step := range tc.then {
				if err := step(b.Client); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Disagreement(prefix, cut.EngineID[:6]); err != nil {
				t.Fatal(err)
			}
			rows, err = s.Engines(prefix)
			if err != nil || len(rows) != 1 {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			engineID, before := rows[0].EngineID, jobVersion(s, rows[0].EngineID)
			told, err := b.Engine(ctx, laneUser)
			if err != nil {
				t.Fatal(err)
			}

			a.Signal(t, syscall.SIGCONT)
			harness.Eventually(t, "the first replica says that it was superseded", func() error {
				if a.Log.Count("op=", "by=") == 0 {
					return errors.New("it does not")
				}
				return nil
			})
			harness.WantCode(t, <-answered, 503, "BACKEND_UNAVAILABLE")
			if err := s.Disagreement(prefix, cut.EngineID[:6]); err != nil {
				t.Error(err)
			}
			if after := jobVersion(s, engineID); after != before {
				t.Errorf("the job was at %s, now at %s", before, after)
			}
			// It continues to serve, and reads the engine's current state.
			harness.Eventually(t, "the first replica serves on", func() error { return a.Ready(ctx) })
			got, err := a.Engine(ctx, laneUser)
			if err != nil || got.EngineID != told.EngineID || got.APIKey != told.APIKey || got.Status != told.Status || got.URL != told.URL {
				t.Errorf("it returns %+v, %v; the other replica returned %+v", got, err, told)
			}
			if got.Status == "running" {
				if status, err := harness.EngineCall(ctx, got, got.APIKey, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusOK {
					t.Errorf("the engine returns %d, %v", status, err)
				}
			}
			want := tc.audit
			if want == "" {
				want = "ok"
			}
			outcomes := map[string]int{}
			entries, _ := harness.AuditLog(t, a.Client, "?action="+cut.Op.Action)
			for _, e := range entries {
				outcomes[e.Outcome]++
				if e.RequestID == cut.Op.RequestID && e.Outcome != want {
					t.Errorf("the audit row of the interrupted operation has outcome %s, want %s", e.Outcome, want)
				}
			}
			if err := destroy(a.Client); err != nil {
				t.Errorf("destroy by the first replica: %v", err)
			}
			if got := s.Census(prefix); got["rows"] != 0 || got["quota"] != 0 || got["jobs"] != 0 {
				t.Errorf("left: %v (audit %v)", got, outcomes)
			}
		})
	}
}

// A single replica that loses its session in the middle of an operation continues it after
// resuming.
func TestPausedAlone(t *testing.T) {
	t.Parallel()
	const prefix = "paused-alone/"
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	p := harness.StartFaulty(t, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), "pause stop/scale-down/done")
	product, err := p.RegisterProduct(ctx, "alone", "Alone", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	p.PlatformKey = product.PlatformAPIKey
	e, err := p.Provision(ctx, laneUser, "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	answered := make(chan error, 1)
	go func() { answered <- harness.ErrOf(p.Stop(ctx, laneUser)) }()
	p.AwaitPause(t)
	s.EndSessions(prefix)
	p.Signal(t, syscall.SIGCONT)
	if err := <-answered; err != nil {
		t.Fatalf("the stop: %v", err)
	}
	started, err := p.Start(ctx, laneUser)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Export(t, started, e.APIKey).Knows("kept"); err != nil {
		t.Error(err)
	}
	if err := s.Disagreement(prefix, e.EngineID[:6]); err != nil {
		t.Error(err)
	}
	if _, err := p.Destroy(ctx, laneUser); err != nil {
		t.Error(err)
	}
}

// TestPausedLeader pauses the leader while it fills the pool, for longer than Consul keeps
// its session. Another replica leads meanwhile; the first one changes nothing after
// resuming.
func TestPausedLeader(t *testing.T) {
	t.Parallel()
	const prefix = "paused-leader/"
	database, s, ctx := harness.Postgres.Database(t), harness.OpenStores(t, harness.Shared), t.Context()
	a := harness.StartFaulty(t, prefix, database, "pause pool/noted")
	a.AwaitPause(t)
	first, err := s.Leader(prefix)
	if err != nil || first == "" {
		t.Fatalf("leader %q, %v", first, err)
	}
	// The volume of a destroyed engine on a node that may come back.
	volume := &consul.KVPair{Key: prefix + "graves/forgotten", Value: []byte(`{"engine_id":"forgotten","node_id":"away","volume_id":"v"}`)}
	if _, err := s.Consul.KV().Put(volume, nil); err != nil {
		t.Fatal(err)
	}
	b := harness.StartFaulty(t, prefix, database, "")
	harness.Eventually(t, "another replica leads", func() error {
		now, err := s.Leader(prefix)
		if err == nil && (now == "" || now == first) {
			err = fmt.Errorf("the leader is %q", now)
		}
		return err
	})
	whole := func(what string) {
		t.Helper()
		harness.Eventually(t, what, func() error { return wholePool(s, prefix, 2) })
	}
	whole("the new leader fills the pool")
	product, err := b.RegisterProduct(ctx, "led", "Led", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	b.PlatformKey, a.PlatformKey = product.PlatformAPIKey, product.PlatformAPIKey
	e, err := b.Provision(ctx, laneUser, "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Leader(prefix)
	if err != nil {
		t.Fatal(err)
	}
	whole("the pool is whole again")

	a.Signal(t, syscall.SIGCONT)
	harness.Eventually(t, "the first leader knows", func() error {
		// Its key belonged to its expired session.
		if ids := replicas(s, prefix); len(ids) != 2 {
			return fmt.Errorf("the replicas are %v", ids)
		}
		// It works as before once it has a new session.
		_, err := a.Stop(ctx, laneUser)
		var said *client.Error
		if errors.As(err, &said) && said.Code != "BACKEND_UNAVAILABLE" {
			t.Fatal(err)
		}
		return err
	})
	whole("the pool is whole after the first leader woke")
	if now, err := s.Leader(prefix); err != nil || now != second {
		t.Errorf("the leader is %q, %v; it was %q", now, err, second)
	}
	if pair, _, err := s.Consul.KV().Get(volume.Key, nil); err != nil || pair == nil {
		t.Errorf("the unreachable volume is %v, %v", pair, err)
	}
	if _, err := s.Consul.KV().Delete(volume.Key, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Disagreement(prefix, e.EngineID[:6]); err != nil {
		t.Error(err)
	}
	if _, err := a.Destroy(ctx, laneUser); err != nil {
		t.Error(err)
	}
}

// TestGracefulShutdown sends SIGTERM to a leader while it boots an engine: another replica
// leads at once, the caller gets its response, and the session is destroyed.
func TestGracefulShutdown(t *testing.T) {
	t.Parallel()
	const prefix = "graceful/"
	database, s, ctx := harness.Postgres.Database(t), harness.OpenStores(t, harness.Shared), t.Context()
	a := harness.StartFaulty(t, prefix, database, "")
	product, err := a.RegisterProduct(ctx, "graceful", "Graceful", harness.PolicyOf(t, harness.AnyImage))
	if err != nil {
		t.Fatal(err)
	}
	a.PlatformKey = product.PlatformAPIKey
	var first string
	harness.Eventually(t, "it leads", func() error {
		first, err = s.Leader(prefix)
		if err == nil && first == "" {
			err = errors.New("it does not")
		}
		return err
	})
	b := harness.StartFaulty(t, prefix, database, "")
	b.PlatformKey = a.PlatformKey
	type answer struct {
		engine *client.Engine
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		e, err := a.Provision(ctx, laneUser, "reference-engine.slow-boot-10s")
		answered <- answer{e, err}
	}()
	harness.Eventually(t, "the engine boots", func() error {
		rows, err := s.Engines(prefix)
		if err == nil && (len(rows) != 1 || rows[0].Op == nil || rows[0].Op.Step != "boot") {
			err = fmt.Errorf("%+v", rows)
		}
		return err
	})
	a.Signal(t, syscall.SIGTERM)
	harness.Eventually(t, "another replica leads", func() error {
		now, err := s.Leader(prefix)
		if err == nil && (now == "" || now == first) {
			err = fmt.Errorf("the leader is %q", now)
		}
		return err
	})
	// It leads while the first replica still has its session.
	if pair, _, err := s.Consul.KV().Get(prefix+"replicas/"+first, nil); err != nil || pair == nil {
		t.Errorf("the session of the first replica: %v, %v", pair, err)
	}
	harness.Eventually(t, "it accepts nothing new", func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		fresh := &client.Client{BaseURL: a.BaseURL, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
		var said *client.Error
		if err := fresh.Ready(ctx); err == nil || errors.As(err, &said) {
			return fmt.Errorf("it returns %w", err)
		}
		return nil
	})
	got := <-answered
	if got.err != nil || got.engine.Status != "running" || got.engine.APIKey == "" {
		t.Fatalf("the provision returned %+v, %v", got.engine, got.err)
	}
	harness.Eventually(t, "it exits", func() error {
		if !a.Dead() {
			return errors.New("it lives")
		}
		return nil
	})
	if code := a.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it exited with %d", code)
	}
	if pair, _, err := s.Consul.KV().Get(prefix+"replicas/"+first, nil); err != nil || pair != nil {
		t.Errorf("its session still exists: %v, %v", pair, err)
	}
	if e, err := b.Engine(ctx, laneUser); err != nil || e.EngineID != got.engine.EngineID || e.APIKey != got.engine.APIKey || e.Status != "running" {
		t.Errorf("the other replica returns %+v, %v", e, err)
	}
	if err := s.Disagreement(prefix, got.engine.EngineID[:6]); err != nil {
		t.Error(err)
	}
	if _, err := b.Destroy(ctx, laneUser); err != nil {
		t.Error(err)
	}
}
