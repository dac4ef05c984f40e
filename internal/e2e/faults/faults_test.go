package faults

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
	"github.com/septemberai/orch/scheduler"
)

// lane repeats one kind of operation on one user's engine, each time in a process that dies
// at the next fault point. The following process finishes or undoes the interrupted
// operation, and is the next one to die, unless it would pass its own point while doing so.
type lane struct {
	t *testing.T
	scenario
	prefix, database string
	s                *harness.Stores
	p                *harness.Process
	platformKey      string
	productID        string
	idPrefix         string
	key              string // the engine's key, as last returned
	engineID         string
	// snapshotID is the snapshot that is restored, and since is what the engine has learnt
	// after it; empty: nothing.
	snapshotID, since string
}

const laneUser = "u"

// scenario is how a kind of operation begins, and its expected result.
type scenario struct {
	image string
	// from is the state in which the operation begins; act makes the call that is
	// interrupted. If no call begins the operation, act writes it into the row as one whose
	// owner is dead.
	from engine.State
	act  func(*lane, string) error
	// before prepares what some points need.
	before map[string]func(*lane)
	action string // of the audit row; empty: no row
	// outcome is the outcome in the audit row if the operation was continued.
	outcome string
	// retry repeats the client's call and checks the response.
	retry   func(*lane, string) error
	answers []string
	// alone lets a process without a fault finish each operation.
	alone bool
	env   []string // of the processes that die
	// unpooled disables the volume pool, with which the step "volume" would be skipped.
	unpooled bool
	// docker: its engines are containers; it is skipped without docker.
	docker bool
	// auditUser is the user in the audit row; empty: laneUser.
	auditUser string
}

// moments are the moments of an operation in the order in which a lane visits them.
var moments = []string{"answered", "saved", "done", "frozen", "fenced", "before", "claimed", "audited"}

// visits returns a lane's points, ordered by moment and, for each moment, from the last
// step to the first, and the points that the next process passes when it resumes each one.
func visits(points []string) (order []string, resumed map[string][]string) {
	resumed = map[string][]string{}
	step := func(point string) string { return point[:strings.LastIndexByte(point, '/')] }
	for _, moment := range moments {
		for i, point := range slices.Backward(points) {
			if !strings.HasSuffix(point, "/"+moment) {
				continue
			}
			order = append(order, point)
			from := slices.IndexFunc(points, func(p string) bool { return step(p) == step(point) })
			switch moment {
			case "answered", "audited":
				from = len(points)
			case "saved", "claimed":
				from = i + 1
			}
			if moment != "saved" && strings.Contains(point, "/copy/") {
				from = 0 // an interrupted copy is made again, by another worker
			}
			resumed[point] = points[from:]
		}
	}
	return order, resumed
}

func call(f func(*lane) error) func(*lane, string) error {
	return func(l *lane, _ string) error { return f(l) }
}

func provisionKeyed(l *lane, point string) error {
	e, err := harness.ProvisionOnce(l.t.Context(), l.p.Client, point, laneUser, l.image)
	if err == nil {
		l.key = e.APIKey
	}
	return err
}

// keyed makes a change with an Idempotency-Key for the point. A retry after the crash gets
// the response that the first call would have got. As a caller does, it retries the change
// while the service is recovering the engine by itself.
func keyed(action string, change func(*lane, client.ChangeOption) error) func(*lane, string) error {
	return func(l *lane, point string) error {
		return harness.Patiently(l.t, action+" at "+point, func() error { return change(l, client.IdempotencyKey(action+" at "+point)) })
	}
}

var (
	provisionIt = call(func(l *lane) error { return harness.ErrOf(l.p.Provision(l.t.Context(), laneUser, l.image)) })
	startIt     = keyed("start", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Start(l.t.Context(), laneUser, key))
	})
	stopIt = keyed("stop", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Stop(l.t.Context(), laneUser, key))
	})
	destroyIt = keyed("destroy", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.Destroy(l.t.Context(), laneUser, key))
	})
	rotateIt = keyed("rotate-key", func(l *lane, key client.ChangeOption) error {
		return harness.ErrOf(l.p.RotateKey(l.t.Context(), laneUser, key))
	})
	rotateAgain = keyed("rotate-key", func(l *lane, key client.ChangeOption) error {
		rotated, err := l.p.RotateKey(l.t.Context(), laneUser, key)
		if err != nil {
			return err
		}
		if e, err := l.p.Engine(l.t.Context(), laneUser); err != nil || e.APIKey != rotated {
			return fmt.Errorf("the returned key is not the engine's (%w)", err)
		}
		return nil
	})
)

// scenarios are named by the kind of operation, or by the kind and a variant.
var scenarios = map[string]scenario{
	"provision":        {act: provisionKeyed, action: "provision", outcome: "ok", retry: provisionKeyed, answers: []string{"ok"}},
	"provision/volume": {act: provisionKeyed, action: "provision", outcome: "ok", retry: provisionKeyed, answers: []string{"ok"}, unpooled: true},
	"provision/undo": {
		image: harness.FailingImage, act: provisionIt, action: "provision", outcome: "ENGINE_BOOT_FAILED",
		retry: provisionIt, answers: []string{"ENGINE_ALREADY_EXISTS"},
	},
	"provision/relocate": {
		act: provisionIt, action: "provision", outcome: "ok", retry: provisionIt, answers: []string{"ENGINE_ALREADY_EXISTS"}, alone: true,
	},
	"start": {
		from: engine.Stopped, act: startIt, action: "start", outcome: "ok", retry: startIt, answers: []string{"ok"},
		before: map[string]func(*lane){
			"start/quiesce/fenced": func(l *lane) { // manually, while it is stopped and nobody reconciles
				harness.Eventually(l.t, "the first reconcile pass is over", func() error {
					if l.p.Log.Passes() == 0 {
						return errors.New("it is not")
					}
					return nil
				})
				scale(l.s, l.engineID, 1)
			},
			"start/variable/fenced": (*lane).dropVariable,
		},
		env: []string{"ORCH_RECONCILE_INTERVAL_S=3600"},
	},
	"start/undo": {image: harness.FailingImage, from: engine.Failed, act: startIt, action: "start", outcome: "ENGINE_BOOT_FAILED", retry: nil},
	"stop":       {from: engine.Running, act: stopIt, action: "stop", outcome: "ok", retry: stopIt, answers: []string{"ok"}},
	"rotate_key": {from: engine.Running, act: rotateIt, action: "rotate_key", outcome: "ok", retry: rotateAgain, answers: []string{"ok"}},
	"rotate_key/undo": {from: engine.Running, act: func(l *lane, _ string) error {
		return l.inject(engine.Operation{Kind: engine.OpRotateKey, Step: "undo-new-key", Undo: "BACKEND_UNAVAILABLE", From: engine.Running}, engine.Running)
	}},
	"restart": {
		from: engine.Running, act: injectKind, before: map[string]func(*lane){"restart/variable/fenced": (*lane).dropVariable},
	},
	"restart/undo": {from: engine.Running, act: func(l *lane, _ string) error {
		return l.inject(engine.Operation{Kind: engine.OpRestart, Step: "undo-register", Undo: "BOOT_TIMEOUT", From: engine.Running}, engine.Running)
	}},
	"destroy": {
		from: engine.Running, act: destroyIt, action: "destroy", outcome: "ok", retry: destroyIt, answers: []string{"ok"},
		before: map[string]func(*lane){"destroy/erase/before": (*lane).takeOne, "destroy/erase/done": (*lane).takeOne, "destroy/erase/saved": (*lane).takeOne},
	},
	"sleep": {from: engine.Running, act: injectKind},
	"sleep/freeze": {from: engine.Running, docker: true, act: func(l *lane, _ string) error {
		return l.inject(engine.Operation{Kind: engine.OpSleep, Step: "freeze", From: engine.Running}, engine.Running)
	}},
	"start/thaw": {
		from: engine.Sleeping, docker: true, act: startIt, action: "start", outcome: "ok", retry: startIt, answers: []string{"ok"},
	},
	"provision/another-port": {from: engine.Running, act: anotherPort},
	"start/another-port":     {from: engine.Running, act: anotherPort},
	"restart/another-port":   {from: engine.Running, act: anotherPort},
	"restore/another-port":   {from: engine.Running, act: anotherPort},
	"move/another-port":      {from: engine.Running, act: anotherPort},
	"move":                   {from: engine.Running, act: moveIt},
	"move/undo":              {from: engine.Running, act: undoneMove},
	"snapshot":               {from: engine.Running, act: snapshotIt, action: "snapshot", outcome: "ok", retry: snapshotIt, answers: []string{"ok"}},
	"snapshot/undo":          {from: engine.Running, act: undoneSnapshot},
	"drill":                  {from: engine.Running, act: drillIt},
	"drill/undo":             {from: engine.Running, act: undoneDrill},
	"restore":                {from: engine.Running, act: restoreIt, action: "restore", outcome: "ok", retry: restoreIt, answers: []string{"ok"}},
	"restore/undo": {
		from: engine.Running, act: restoreIt, action: "restore", outcome: "CAPACITY_EXHAUSTED", retry: startIt, answers: []string{"ok", "ENGINE_ALREADY_RUNNING"}, alone: true,
	},
	"provision/fork": {from: engine.Running, act: forkIt, action: "fork", outcome: "ok", retry: forkAndDrop, answers: []string{"ok"}, auditUser: forkUser},
	"recover": {from: engine.Running, act: func(l *lane, _ string) error {
		return l.inject(engine.Operation{Kind: engine.OpRecover, Step: "boot", From: engine.Failed}, engine.Provisioning)
	}},
	"recover/undo": {from: engine.Running, act: func(l *lane, _ string) error {
		return l.inject(engine.Operation{Kind: engine.OpRecover, Step: "undo-recover", Undo: "BACKEND_UNAVAILABLE", From: engine.Failed}, engine.Provisioning)
	}},
}

// dropVariable manually deletes the hash of the engine's key. A start writes it only if it
// is missing.
func (l *lane) dropVariable() {
	if _, err := l.s.Nomad.Variables().Delete("nomad/jobs/engine-"+l.engineID, nil); err != nil {
		l.t.Fatal(err)
	}
}

// injectKind begins, at its first step, the kind of operation that a point belongs to.
func injectKind(l *lane, point string) error {
	kind := engine.OpKind(strings.Split(point, "/")[0])
	return l.inject(engine.Operation{Kind: kind, Step: scheduler.FirstStep(kind), From: engine.Running}, engine.Running)
}

// anotherPort begins the kind of operation that a point belongs to, with the port of its
// process taken.
func anotherPort(l *lane, point string) error {
	kind := engine.OpKind(strings.Split(point, "/")[0])
	state := engine.Provisioning
	if kind == engine.OpRestart {
		state = engine.Running
	}
	return l.inject(engine.Operation{Kind: kind, Step: "another-port", From: engine.Running}, state)
}

// lanes distributes all points among lanes.
func lanes(t *testing.T) map[string][]string {
	sorted := map[string][]string{}
	for kind, points := range scheduler.FaultPoints() {
		for _, point := range points {
			name := kind
			if strings.Contains(point, "/own/") || strings.Contains(point, "/burn/") {
				continue // testWarmPoints and testBurnPoints visit them
			}
			if leftOut(point) {
				continue
			}
			switch {
			case strings.Contains(point, "/undo-"):
				name += "/undo"
			case kind == "provision" && ofSnapshots(point):
				name += "/fork"
			case strings.Contains(point, "/relocate/"):
				name += "/relocate"
			case strings.Contains(point, "/another-port/"):
				name += "/another-port"
			case strings.HasPrefix(point, "provision/volume/"):
				name += "/volume"
			case strings.Contains(point, "/freeze/"):
				name += "/freeze"
			case strings.Contains(point, "/thaw/"):
				name += "/thaw"
			}
			sc, known := scenarios[name]
			if !known && kind != "pool" && len(points) > 2 {
				sc, known = scenario{from: engine.Running, act: injectKind}, true
				scenarios[name] = sc
			}
			if known && sc.action == "" && !strings.Contains(strings.TrimPrefix(point, kind+"/"), "/") && !strings.HasSuffix(point, "/answered") {
				continue // no call begins it; the test writes the row
			}
			sorted[name] = append(sorted[name], point)
		}
	}
	for name := range scenarios {
		if len(sorted[name]) == 0 {
			t.Errorf("no point is of scenario %s", name)
		}
	}
	return sorted
}

// TestFaultPoints kills the service at every point once. Afterwards row, job, volume,
// variable, key, quota count, index and audit agree, and a retry of the client's call gets
// a correct response.
func TestFaultPoints(t *testing.T) {
	t.Parallel()
	sorted := lanes(t)
	names := make([]string, 0, len(sorted))
	for name := range sorted {
		names = append(names, name)
	}
	// The longest lanes start first, because they take longest.
	slices.SortFunc(names, func(a, b string) int { return len(sorted[b]) - len(sorted[a]) })
	for _, name := range names {
		switch {
		case name == "pool":
			t.Run(name, testPoolPoints)
			t.Run("warm", testWarmPoints)
			t.Run("burn", testBurnPoints)
		case name == "epoch":
			t.Run(name, func(t *testing.T) { testEpochPoints(t, sorted[name]) })
		case len(sorted[name]) == 2 && strings.HasSuffix(sorted[name][1], "/written"):
			t.Run(name, func(t *testing.T) { testAdminPoints(t, sorted[name]) })
		default:
			t.Run(name, func(t *testing.T) { newLane(t, name).run(sorted[name]) })
		}
	}
}

func newLane(t *testing.T, name string) *lane {
	if scenarios[name].docker {
		harness.NeedDocker(t)
	}
	t.Parallel()
	l := &lane{
		t: t, scenario: scenarios[name], prefix: "faults-" + strings.ReplaceAll(name, "/", "-") + "/", s: harness.OpenStores(t, harness.Shared),
		database: "sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
	}
	if l.alone {
		l.env = []string{"ORCH_ENGINE_JOB_FILE=" + jobFileForNowhere(t)}
	}
	return l
}

func (l *lane) run(points []string) {
	order, resumed := visits(points)
	if len(order) != len(points) {
		l.t.Fatalf("%d of the points %v are visited", len(order), points)
	}
	done := ""
	for _, point := range order {
		if l.alone && l.from != "" && done == "" { // a process that may fail cannot prepare
			l.next("")
			l.bring(point)
			l.p.End()
			l.s.EndSessions(l.prefix)
		}
		if done != "" && (l.alone || slices.Contains(resumed[done], point)) {
			l.next("")
			l.check(done)
			if l.alone && l.from != "" {
				l.bring(point)
			}
			l.p.End()
			l.s.EndSessions(l.prefix)
			done = ""
		}
		l.next(point)
		if done != "" {
			l.check(done)
		}
		l.bring(point)
		err := l.act(l, point)
		if derr := l.p.AwaitDeath(); derr != nil {
			l.t.Fatalf("%s: not reached: %v; the call returned %v", point, derr, err)
		}
		l.s.EndSessions(l.prefix)
		done = point
	}
	l.next("")
	l.check(done)
	if l.exists() {
		if _, err := l.p.Destroy(l.t.Context(), laneUser); err != nil {
			l.t.Fatal(err)
		}
	}
	l.agree("the end")
	if got := l.s.Census(l.prefix); got["rows"] != 0 || got["quota"] != 0 || got["jobs"] != 0 {
		l.t.Errorf("left: %v", got)
	}
	l.p.NeverRecovered(l.t)
}

// next starts the next process, which dies at point unless that is empty.
func (l *lane) next(point string) {
	var env []string
	armed := ""
	if point != "" {
		armed, env = "kill "+point, l.env
	}
	if l.unpooled {
		env = append(slices.Clone(env), "ORCH_VOLUME_POOL=0")
	}
	if l.docker {
		env = slices.Concat(env, harness.Docker.Environ())
	}
	l.p = harness.StartFaulty(l.t, l.prefix, l.database, armed, env...)
	if l.platformKey == "" {
		product, err := l.p.RegisterProduct(l.t.Context(), "faulty", "Faulty", harness.PolicyOf(l.t, harness.AnyImage))
		if err != nil {
			l.t.Fatal(err)
		}
		l.productID, l.platformKey = product.ProductID, product.PlatformAPIKey
	}
	l.p.PlatformKey = l.platformKey
}

func (l *lane) row() *engine.Row {
	rows, err := l.s.Engines(l.prefix)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, row := range rows {
		if row.UserID == laneUser {
			return row
		}
	}
	return nil
}

func (l *lane) exists() bool { return l.row() != nil }

// bring brings the engine into the state in which the operation begins.
func (l *lane) bring(point string) {
	l.t.Helper()
	ctx := l.t.Context()
	must := func(err error) {
		l.t.Helper()
		if err != nil {
			l.t.Fatalf("before %s: %v", point, err)
		}
	}
	harness.Eventually(l.t, "no operation is in progress before "+point, func() error {
		if row := l.row(); row != nil && row.Op != nil {
			return fmt.Errorf("%+v", row.Op)
		}
		return nil
	})
	row := l.row()
	if l.from == "" {
		if row != nil {
			must(destroyIt(l, point))
		}
		return
	}
	if row == nil {
		e, err := l.p.Provision(ctx, laneUser, l.image)
		if l.from == engine.Failed {
			harness.WantCode(l.t, err, 502, "ENGINE_BOOT_FAILED")
		} else {
			must(err)
			l.key = e.APIKey
			harness.Remember(l.t, e, l.key, "kept")
		}
		row = l.row()
	}
	if row.State != l.from && row.State != engine.Running && row.State != engine.Failed {
		must(startIt(l, point))
	}
	if row.State == engine.Failed && l.from != engine.Failed {
		must(stopIt(l, point))
		must(startIt(l, point))
	}
	if l.from == engine.Stopped && row.State != engine.Stopped {
		must(stopIt(l, point))
	}
	if l.from == engine.Sleeping && row.State != engine.Sleeping {
		must(l.inject(engine.Operation{Kind: engine.OpSleep, Step: "freeze", From: engine.Running}, engine.Running))
		harness.Eventually(l.t, "the engine is paused", func() error {
			if row := l.row(); row.Op != nil || row.Frozen == nil {
				return fmt.Errorf("%s, %+v", row.State, row.Op)
			}
			return nil
		})
	}
	l.engineID, l.idPrefix = row.EngineID, row.EngineID[:6]
	if prepare := l.before[point]; prepare != nil {
		prepare(l)
	}
	if l.action == "restore" && l.since == "" {
		l.learnMore(point)
	}
}

// agree waits until the stores agree.
func (l *lane) agree(after string) {
	l.t.Helper()
	harness.Eventually(l.t, "agreement after "+after, func() error { return l.s.Disagreement(l.prefix, l.idPrefix) })
}

// check verifies the result after another process has handled an operation that was
// interrupted at point.
func (l *lane) check(point string) {
	l.t.Helper()
	l.agree(point)
	if l.action != "" {
		l.wantAudit(point)
	}
	row := l.row()
	if row != nil {
		l.idPrefix = row.EngineID[:6]
		if l.engineID != "" && l.from != "" && row.EngineID != l.engineID {
			l.t.Errorf("%s: it is engine %s now", point, row.EngineID)
		}
	}
	l.wantUsable(point)
	l.wantNothingLeft(point)
	if l.retry == nil {
		return
	}
	err := l.retry(l, point)
	answer := "ok"
	var said *client.Error
	if errors.As(err, &said) {
		answer = string(said.Code)
	} else if err != nil {
		answer = err.Error()
	}
	want := l.answers
	if l.from == "" && row == nil {
		want = []string{l.outcome} // the first call had no effect
	}
	if !slices.Contains(want, answer) {
		l.t.Errorf("%s: the same call again: %v", point, err)
	}
	l.agree(point + " and the same call again")
	l.wantUsable(point)
}

// wantUsable checks that a running engine accepts the current key but no earlier one, and
// has its brain.
func (l *lane) wantUsable(point string) {
	l.t.Helper()
	row := l.row()
	if row == nil || row.State != engine.Running {
		return
	}
	e, err := l.p.Engine(l.t.Context(), laneUser)
	if err != nil {
		l.t.Fatalf("%s: %v", point, err)
	}
	brain := harness.Export(l.t, e, e.APIKey)
	if l.from != "" {
		if err := brain.Knows("kept"); err != nil {
			l.t.Errorf("%s: %v", point, err)
		}
	}
	l.wantOneBrain(point, brain, e.APIKey)
	if l.key != "" && l.key != e.APIKey && l.from != "" {
		if status, err := harness.EngineCall(l.t.Context(), e, l.key, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusUnauthorized {
			l.t.Errorf("%s: the key before: %d, %v", point, status, err)
		}
		if !strings.HasPrefix(point, "rotate_key/") && !strings.HasPrefix(point, "restore/") {
			l.t.Errorf("%s: the key is another one", point)
		}
	}
	l.key = e.APIKey
}

// wantAudit checks that the operation has one row, with its outcome, or that it was
// interrupted.
func (l *lane) wantAudit(point string) {
	l.t.Helper()
	moments := strings.Split(point, "/")
	want := l.outcome
	switch moments[len(moments)-1] {
	case "audited", "answered":
		want = "interrupted"
	}
	if point == "destroy/row/done" || strings.HasSuffix(point, "/saved") && scheduler.LastStep(point) {
		want = "interrupted" // no process knows its outcome
	}
	rows, _ := harness.AuditLog(l.t, l.p.Client, "?limit=1&action="+l.action)
	if len(rows) != 1 {
		l.t.Fatalf("%s: no audit row", point)
	}
	harness.Eventually(l.t, point+": the audit row", func() error {
		rows, _ := harness.AuditLog(l.t, l.p.Client, "?limit=1&action="+l.action)
		if len(rows) != 1 || rows[0].Outcome != want || rows[0].UserID != cmp.Or(l.auditUser, laneUser) {
			return fmt.Errorf("%+v, want outcome %s", rows, want)
		}
		return nil
	})
}

// inject writes an operation whose owner is dead into the engine's row.
func (l *lane) inject(op engine.Operation, state engine.State) (err error) {
	harness.Eventually(l.t, "the row is written", func() error {
		if err = l.injectOnce(op, state); errors.Is(err, harness.ErrRowChanged) {
			return err
		}
		return nil
	})
	return err
}

func (l *lane) injectOnce(op engine.Operation, state engine.State) error {
	pairs, _, err := l.s.Consul.KV().List(l.prefix+"engines/", nil)
	if err != nil || len(pairs) != 1 {
		return fmt.Errorf("%d rows, %w", len(pairs), err)
	}
	row := l.row()
	if op.Restoring != nil {
		row.NextVolume, row.Snapshot = op.Restoring.Target.VolumeName, &engine.SnapshotRef{}
	} else if op.Kind == engine.OpRestore || op.Kind == engine.OpMove {
		op.Restoring = &engine.Restoring{EngineID: row.EngineID, Target: row.Place(), Ended: true}
	}
	op.ID, op.Owner, op.BeganAt, op.Deadline = "injected-"+row.EngineID, "gone", time.Now(), time.Now().Add(time.Minute)
	row.Op, row.State = &op, state
	if op.Step == "freeze" {
		at := int64(0)
		harness.Eventually(l.t, "Nomad reports the process", func() error {
			if at = started(l.s, row.AllocID); at == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		row.Frozen, row.Desired = &engine.Frozen{AllocID: row.AllocID, URL: row.URL, Started: at}, engine.Sleeping
	}
	if pairs[0].Value, err = json.Marshal(row); err != nil {
		return err
	}
	return l.s.Write(l.prefix, pairs[0])
}

// started returns when the process of an allocation was last started.
func started(s *harness.Stores, allocID string) (at int64) {
	s.T.Helper()
	alloc, _, err := s.Nomad.Allocations().Info(allocID, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, task := range alloc.TaskStates {
		for _, event := range task.Events {
			if event.Type == nomad.TaskStarted {
				at = max(at, event.Time)
			}
		}
	}
	return at
}

// scale manually sets the count of an engine's job, and waits for the effect.
func scale(s *harness.Stores, engineID string, count int) {
	s.T.Helper()
	name := "engine-" + engineID
	if _, _, err := s.Nomad.Jobs().Scale(name, "engine", &count, "manually", false, nil, nil); err != nil {
		s.T.Fatal(err)
	}
	harness.Eventually(s.T, "the hand's scaling", func() error {
		allocs, _, err := s.Nomad.Jobs().Allocations(name, false, nil)
		if err != nil {
			return err
		}
		alive := 0
		for _, a := range allocs {
			if a.ClientStatus == nomad.AllocClientStatusRunning {
				alive++
			}
		}
		if alive != count {
			return fmt.Errorf("%d allocations run", alive)
		}
		return nil
	})
}

// jobFileForNowhere is a job file that no node satisfies, which only Nomad finds out.
func jobFileForNowhere(t *testing.T) string {
	t.Helper()
	const group = `group "engine" {`
	edited := strings.Replace(nomadjobs.Engine, group, group+`
    constraint {
      attribute = "${node.unique.name}"
      value     = "nowhere"
    }
`, 1)
	if edited == nomadjobs.Engine {
		t.Fatal("the job file has no " + group)
	}
	file := filepath.Join(t.TempDir(), "engine.nomad.hcl")
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// testAdminPoints interrupts a change of a product before and after it is made.
func testAdminPoints(t *testing.T, points []string) {
	t.Parallel()
	change, _, _ := strings.Cut(points[0], "/")
	prefix, database := "faults-"+change+"/", "sqlite://"+filepath.Join(t.TempDir(), "audit.db")
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	for _, point := range points {
		slug := strings.ReplaceAll(strings.ReplaceAll(point, "/", "-"), "_", "-")
		before := harness.StartFaulty(t, prefix, database, "")
		product := new(client.Registered)
		if change != "product_register" {
			var err error
			if product, err = before.RegisterProduct(ctx, slug, "Faulty", nil); err != nil {
				t.Fatal(err)
			}
		}
		before.End()
		s.EndSessions(prefix)

		p := harness.StartFaulty(t, prefix, database, "kill "+point)
		at := "/products/" + product.ProductID
		make := map[string]func(*harness.Process) error{
			"product_register": func(p *harness.Process) error { return harness.ErrOf(p.RegisterProduct(ctx, slug, "Faulty", nil)) },
			"policy_update": func(p *harness.Process) error {
				return p.Do(ctx, http.MethodPut, at+"/policy", map[string]any{"policy": map[string]any{"max_engines": 7}}, nil)
			},
			"platform_key_rotate": func(p *harness.Process) error { return p.Do(ctx, http.MethodPost, at+"/rotate-platform-key", nil, nil) },
			"product_delete":      func(p *harness.Process) error { return p.Do(ctx, http.MethodDelete, at, nil, nil) },
		}[change]
		if make == nil {
			t.Fatalf("no test makes the change %s", change)
		}
		err := make(p)
		if derr := p.AwaitDeath(); derr != nil {
			t.Fatalf("%s: not reached: %v; the call returned %v", point, derr, err)
		}
		s.EndSessions(prefix)

		next := harness.StartFaulty(t, prefix, database, "")
		rows, _ := harness.AuditLog(t, next.Client, "?limit=1&action="+change)
		if len(rows) != 1 || rows[0].Outcome != "interrupted" || rows[0].Actor != "admin" {
			t.Errorf("%s: audit %+v", point, rows)
		}
		made := strings.HasSuffix(point, "/written")
		err = make(next)
		switch {
		case made && change == "product_register":
			harness.WantCode(t, err, 409, "PRODUCT_SLUG_EXISTS")
		case made && change == "product_delete":
			harness.WantCode(t, err, 404, "PRODUCT_NOT_FOUND")
		case err != nil:
			t.Errorf("%s: the same call again: %v", point, err)
		}
		if change == "platform_key_rotate" {
			// Nobody got the new key; the old one became invalid with the change.
			theirs := &client.Client{BaseURL: next.BaseURL, PlatformKey: product.PlatformAPIKey}
			_, err := theirs.Engine(ctx, laneUser)
			harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
		}
		next.End()
		s.EndSessions(prefix)
	}
}
