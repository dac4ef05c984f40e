package scheduler

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
)

// TestSnapshotDue: a running engine gets a snapshot per interval, with a tenth of it to
// spread them; one that rests gets one after it came to rest, and no other.
func TestSnapshotDue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rule := snapshotRule{every: time.Duration(rapid.IntRange(300, 1_000_000).Draw(t, "interval")) * time.Second}
		now := time.Unix(1_800_000_000, 0)
		ago := func(what string, most time.Duration) time.Time {
			return now.Add(-time.Duration(rapid.Int64Range(0, int64(most)).Draw(t, what)))
		}
		row := &engine.Row{
			EngineID: rapid.StringMatching(`[a-z2-7]{26}`).Draw(t, "engine_id"), VolumeID: "v", CreatedAt: ago("created", 10*rule.every),
			State: rapid.SampledFrom([]engine.State{engine.Running, engine.Stopped, engine.Sleeping}).Draw(t, "state"),
		}
		if rapid.Bool().Draw(t, "has one") {
			row.Snapshot = &engine.SnapshotRef{ID: "s", At: ago("taken", 3*rule.every)}
		}
		ended := ago("ended", 3*rule.every)
		row.Last = &engine.Ended{Kind: engine.OpStop, BeganAt: ended.Add(-time.Second), EndedAt: ended}
		due := snapshotDue(row, rule, now)
		age := now.Sub(lastSnapshot(row))
		if row.State == engine.Running {
			switch {
			case row.Snapshot != nil && age < rule.every && due:
				t.Fatalf("due %s after the last one, with an interval of %s", age, rule.every)
			case row.Snapshot != nil && age > rule.every+rule.every/jitterPart && !due:
				t.Fatalf("not due %s after the last one, with an interval of %s", age, rule.every)
			case row.Snapshot == nil && now.Sub(row.CreatedAt) > rule.every && !due:
				t.Fatalf("no snapshot %s after the engine was created", now.Sub(row.CreatedAt))
			}
			return
		}
		if changed := lastSnapshot(row).Before(ended); due != changed {
			t.Fatalf("changed since the last one: %t, due: %t", changed, due)
		}
		row.Snapshot = &engine.SnapshotRef{ID: "s", At: now}
		row.Last = &engine.Ended{Kind: engine.OpSnapshot, BeganAt: now, EndedAt: now.Add(time.Second)}
		if snapshotDue(row, rule, now.Add(100*rule.every)) {
			t.Fatal("another one although nothing has changed")
		}
		row.Op = &engine.Operation{}
		if snapshotDue(row, rule, now.Add(100*rule.every)) {
			t.Fatal("due during an operation")
		}
	})
}
