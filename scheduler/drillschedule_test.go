package scheduler

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

func never(*engine.Row) bool { return false }

// TestDueDrill: the first drill of a product follows its first snapshot, the others follow at
// their interval, and engines take turns. A newer snapshot than one that failed is first.
func TestDueDrill(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	const every = 24 * time.Hour
	row := func(id string, ago time.Duration, failure string) *engine.Row {
		r := &engine.Row{EngineID: id, State: engine.Running, Snapshot: &engine.SnapshotRef{ID: "s"}}
		if ago > 0 {
			r.Drill = &engine.Drill{SnapshotID: "s", At: now.Add(-ago), Failure: failure}
		}
		return r
	}
	with := func(r *engine.Row, change func(*engine.Row)) *engine.Row { change(r); return r }
	const h = time.Hour
	for name, c := range map[string]struct {
		rows  []*engine.Row
		tried map[string]time.Time
		want  string
	}{
		"First":        {[]*engine.Row{row("a", 0, "")}, nil, "a"},
		"TooSoon":      {[]*engine.Row{row("a", 23*h, ""), row("b", 0, "")}, nil, ""},
		"NeverDrilled": {[]*engine.Row{row("a", 25*h, ""), row("b", 0, "")}, nil, "b"},
		"LongestAgo":   {[]*engine.Row{row("a", 25*h, ""), row("b", 49*h, "")}, nil, "b"},
		"TriedBefore":  {[]*engine.Row{row("a", 0, ""), row("b", 0, "")}, map[string]time.Time{"a": now.Add(-h)}, "b"},
		"Underway": {[]*engine.Row{row("a", 0, ""), with(row("b", 0, ""), func(r *engine.Row) {
			r.Op = &engine.Operation{Kind: engine.OpDrill}
		})}, nil, ""},
		"Busy":          {[]*engine.Row{with(row("a", 0, ""), func(r *engine.Row) { r.Op = &engine.Operation{Kind: engine.OpStop} })}, nil, ""},
		"NoSnapshotYet": {[]*engine.Row{with(row("a", 0, ""), func(r *engine.Row) { r.Snapshot.ID = "" })}, nil, ""},
		"Failed":        {[]*engine.Row{with(row("a", 0, ""), func(r *engine.Row) { r.State = engine.Failed })}, nil, ""},
		"FailedDrill":   {[]*engine.Row{row("a", 2*h, "why"), row("b", 3*h, "")}, nil, ""},
		"NewerSnapshot": {[]*engine.Row{with(row("a", 2*h, "why"), func(r *engine.Row) { r.Snapshot.ID = "t" }), row("b", 3*h, "")}, nil, "a"},
		"Repaired":      {[]*engine.Row{row("a", 25*h, "why"), row("b", 3*h, "")}, nil, "a"},
	} {
		got := ""
		if r := dueDrill(c.rows, every, now, c.tried, never); r != nil {
			got = r.EngineID
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if r := dueDrill([]*engine.Row{row("a", 0, "")}, every, now, nil, func(*engine.Row) bool { return true }); r != nil {
		t.Error("a drill of an engine that must be examined")
	}
}

// A drill fails only because of what says something about the snapshot.
func TestDrillFailure(t *testing.T) {
	for _, err := range []error{
		noBrainKey(secrets.ErrNotFound), noBrainKey(secrets.ErrDeleted), errFormerBrainKey, errNoSnapshot, &engine.Error{Code: engine.SnapshotFailed, Err: errForeignBrainKey},
		brain.Errorf(brain.NotFound, "x"), brain.Errorf(brain.Corrupt, "x"), fmt.Errorf("in the worker: %w", brain.Errorf(brain.Damaged, "secret.db")),
	} {
		if drillFailure(err) == "" {
			t.Errorf("%v is no failure", err)
		}
	}
	for _, err := range []error{
		brain.Errorf(brain.Away, "x"), brain.Errorf(brain.NoRoom, "x"), brain.Errorf(brain.Refused, "x"), brain.Errorf(brain.Busy, "x"), brain.Errorf(brain.NotEmpty, "x"),
		brain.Errorf(brain.Internal, "x"), secrets.ErrUnavailable, cluster.ErrNotFound, engine.Errorf(engine.CapacityExhausted, "x"), errors.New("x"),
	} {
		if why := drillFailure(err); why != "" {
			t.Errorf("%v: %s", err, why)
		}
	}
}

// What somebody waits for does not wait for a drill.
func TestTurns(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	op := func(kind engine.OpKind, at time.Time) *engine.Operation {
		return &engine.Operation{Kind: kind, BeganAt: at}
	}
	if goesBefore(op(engine.OpDrill, early), op(engine.OpSnapshot, late)) || !goesBefore(op(engine.OpSnapshot, late), op(engine.OpDrill, early)) {
		t.Error("a drill goes before a snapshot")
	}
	if !goesBefore(op(engine.OpSnapshot, early), op(engine.OpRestore, late)) || goesBefore(op(engine.OpDrill, late), op(engine.OpDrill, early)) {
		t.Error("the later one goes first")
	}
}

// The volume of a drill is removed as soon as no row has it; a brain never is.
func TestStrayDrills(t *testing.T) {
	const deployment = "k2x4qzrt5vwy7ab3"
	id := engine.NewID(deployment)
	row := &engine.Row{EngineID: id, VolumeID: "brain"}
	drill := row.FreshDrillName()
	for name, c := range map[string]struct {
		volume string
		row    *engine.Row
		want   bool
	}{
		"NoRow":        {drill, nil, true},
		"NoOperation":  {drill, row, true},
		"Operation":    {drill, &engine.Row{EngineID: id, Op: &engine.Operation{}}, false},
		"Discarded":    {drill, &engine.Row{EngineID: id, Discarded: []engine.Discarded{{Place: engine.Place{VolumeID: "v"}}}}, false},
		"Brain":        {row.JobID(), nil, false},
		"RestoredOnes": {row.FreshRestoreName(), nil, false},
		"OfOthers":     {"engine-abc.d2", nil, false},
	} {
		if got := isStrayDrill(&cluster.Volume{ID: "v", Name: c.volume}, c.row, deployment); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
