package scheduler

import (
	"cmp"
	"context"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

const (
	// drillsAtOnce limits the drills of all products together. After an outage, or the first
	// start with many products, the others follow one after another.
	drillsAtOnce = 4
	// drillAgain is after how long a snapshot that could not be restored is tried again: somebody
	// may have repaired the store. A newer snapshot of the engine is tried at once.
	drillAgain = 24 * time.Hour
	// firstDrillRetry is the wait after a drill of a product that said nothing about its
	// snapshot; it doubles with each further one, up to the interval.
	firstDrillRetry = time.Minute
	// drillsOverdue is after how many intervals without a drill that succeeded a product is
	// reported.
	drillsOverdue = 3
)

// drills restores snapshots for a trial, on the leader: of each product the one whose engine
// had a drill longest ago, or never.
type drills struct {
	s *Scheduler
	// waits are by product: when the next drill may begin. tried is when an engine last had one
	// that said nothing. Both are changed in once alone.
	waits map[string]drillWait
	tried map[string]time.Time
	ended chan drillEnd
}

type drillWait struct {
	count int
	next  time.Time
}

// drillEnd is the end of a drill. said: it had a result.
type drillEnd struct {
	row  *engine.Row
	said bool
}

func newDrills(s *Scheduler) *drills {
	return &drills{s: s, waits: map[string]drillWait{}, tried: map[string]time.Time{}, ended: make(chan drillEnd, 4*drillsAtOnce)}
}

func (d *drills) run(ctx context.Context) {
	strays := strayDrills{}
	for looked := (time.Time{}); pause.For(ctx, scheduleEvery); {
		if !d.s.informed() {
			continue
		}
		d.once(ctx, time.Now())
		if time.Since(looked) > straysEvery {
			looked = time.Now()
			if err := strays.sweep(ctx, d.s); err != nil && ctx.Err() == nil {
				d.s.log.Debug("cannot look for volumes of drills without an operation; retrying", "error", err)
			}
		}
	}
}

// drillInterval returns the time between the drills of a product; 0: there are none.
func (s *Scheduler) drillInterval() time.Duration {
	if s.opts.Snapshots.DrillsPerDay <= 0 {
		return 0
	}
	return 24 * time.Hour / time.Duration(s.opts.Snapshots.DrillsPerDay)
}

func (d *drills) once(ctx context.Context, now time.Time) {
	d.settle(now)
	every := d.s.drillInterval()
	if every == 0 {
		return
	}
	under, products := 0, map[string][]*engine.Row{}
	for _, row := range d.s.mirror.All() {
		if row.Op != nil && row.Op.Kind == engine.OpDrill {
			under++
		}
		if row.Snapshot != nil {
			products[row.ProductID] = append(products[row.ProductID], row)
		}
	}
	for id, rows := range products {
		if under >= drillsAtOnce {
			return
		}
		if now.Before(d.waits[id].next) {
			continue
		}
		if row := dueDrill(rows, every, now, d.tried, d.s.monitor.Needs); row != nil {
			under++
			d.begin(ctx, row)
		}
	}
}

// mayDrill reports whether a drill may be written into a row.
func mayDrill(row *engine.Row) bool {
	rests := row.State == engine.Running || row.State == engine.Stopped || row.State == engine.Sleeping
	return rests && row.Op == nil && row.Warm == "" && row.Snapshot != nil && row.Snapshot.ID != ""
}

// dueDrill returns the engine of a product that is to have a drill now; nil: none. One whose
// snapshot could not be restored is first, when it has a newer one. The others take turns.
// tried is when an engine last had a drill without a result; sick engines are left alone.
func dueDrill(rows []*engine.Row, every time.Duration, now time.Time, tried map[string]time.Time, sick func(*engine.Row) bool) *engine.Row {
	var due, again *engine.Row
	var last time.Time
	turn := func(row *engine.Row) time.Time {
		at := tried[row.EngineID]
		if row.Drill != nil && row.Drill.At.After(at) {
			at = row.Drill.At
		}
		return at
	}
	first := func(a, b *engine.Row) *engine.Row {
		if a == nil || cmp.Or(turn(b).Compare(turn(a)), cmp.Compare(b.EngineID, a.EngineID)) < 0 {
			return b
		}
		return a
	}
	for _, row := range rows {
		if row.Op != nil && row.Op.Kind == engine.OpDrill {
			return nil
		}
		if row.Drill != nil && row.Drill.At.After(last) {
			last = row.Drill.At
		}
		if !mayDrill(row) || sick(row) {
			continue
		}
		due = first(due, row)
		if row.Drill.Failed() && (row.Drill.SnapshotID != row.Snapshot.ID || now.Sub(turn(row)) >= drillAgain) {
			again = first(again, row)
		}
	}
	if again != nil {
		return again
	}
	if engine.StillWaits(last.Add(every), now, every) {
		return nil
	}
	return due
}

// begin begins a drill, and notes whether it had a result.
func (d *drills) begin(ctx context.Context, row *engine.Row) {
	o, err := d.s.propose(ctx, row, proposal{
		kind: engine.OpDrill, action: audit.ActionDrill, actor: actorSystem, backends: []string{"nomad", "vault"},
		details: map[string]any{"snapshot_id": row.Snapshot.ID}, prepare: d.s.prepareDrill,
	})
	if err != nil {
		d.note(ctx, row, err, false)
		return
	}
	began := time.Now().UTC()
	if row.Drill != nil {
		began = row.Drill.At
	}
	d.s.ops.Background(func(ctx context.Context) {
		_, err := o.Wait(ctx)
		now, rerr := d.s.store.Engine(ctx, row.ProductID, row.UserID)
		said := rerr == nil && now.Drill != nil && (row.Drill == nil || now.Drill.At.After(began))
		d.note(ctx, row, err, said)
	})
}

func (d *drills) note(ctx context.Context, row *engine.Row, err error, said bool) {
	if err != nil && !said && ctx.Err() == nil {
		d.s.log.Info("a restore drill had no result, which says nothing about the snapshot; another one follows", "engine_id", row.EngineID, "product_id", row.ProductID, "error", err)
	}
	select {
	case d.ended <- drillEnd{row, said}:
	default: // only its wait is lost
	}
}

// settle notes the ends of drills.
func (d *drills) settle(now time.Time) {
	for {
		select {
		case e := <-d.ended:
			id := e.row.ProductID
			if e.said {
				delete(d.waits, id)
				delete(d.tried, e.row.EngineID)
				continue
			}
			w := d.waits[id]
			w.count++
			w.next = now.Add(engine.Doubled(firstDrillRetry, w.count, max(d.s.drillInterval(), firstDrillRetry)))
			d.waits[id], d.tried[e.row.EngineID] = w, now
		default:
			return
		}
	}
}
