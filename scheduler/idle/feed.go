package idle

import (
	"time"

	"github.com/septemberai/orch/registry"
)

// brokenAfter is how long the leader may get no reports before what it knows about idle
// engines counts as outdated.
const brokenAfter = 8 * flushEvery

// feed is what the leader knows of the admits on all replicas. It is pure, so that it can
// be checked on every interleaving. It compares no clocks of different machines: an engine
// was in use when the leader read the report, by the leader's own clock.
type feed struct {
	// floor is the time since when the leader can know that an engine is idle. Whatever it
	// may have missed sets floor to now, so that every engine gets a full idle period.
	floor    time.Time
	at       time.Time // of the last view
	used     map[uint64]time.Time
	replicas map[string]*teller
}

// teller is a replica, as of its last flush.
type teller struct {
	born   uint64 // differs for each of its sessions
	seq    uint64 // of the last flush
	seen   uint64
	flying map[uint64]uint64
}

func newFeed() *feed { return &feed{used: map[uint64]time.Time{}, replicas: map[string]*teller{}} }

// observe stores a view that was read before now.
func (f *feed) observe(view *registry.Activity, now time.Time) {
	missed := f.at.IsZero() || now.Sub(f.at) > brokenAfter
	f.at = now
	for id, t := range f.replicas {
		if view.Replicas[id] != t.born {
			// It no longer exists, or did not for a while: what it did not report is
			// unknown.
			delete(f.replicas, id)
			missed = true
		}
	}
	for id, born := range view.Replicas {
		t := f.replicas[id]
		if t == nil {
			t = &teller{born: born}
			f.replicas[id] = t
		}
		for _, flush := range view.Flushes[id] {
			if flush.Seq <= t.seq {
				continue
			}
			missed = missed || flush.After > t.seq || flush.All
			t.seq = flush.Seq
			if flush.All {
				continue
			}
			t.seen, t.flying = flush.Seen, flush.Flying
			for _, engine := range flush.Served {
				f.used[engine] = now
			}
		}
	}
	if missed {
		f.floor = now
	}
}

// lastUsed returns when an engine was last in use, as far as the leader can know.
func (f *feed) lastUsed(engine uint64) time.Time {
	if t := f.used[engine]; t.After(f.floor) {
		return t
	}
	return f.floor
}

// settled reports whether every admit that can have read the engine's row before index has
// ended, and was reported if it was granted. For that, each replica in the last view must
// have made a report after index, at a moment when no admit was in progress that had
// arrived before the replica knew an index beyond.
//
// Once true it stays true: later replicas and later admits read the row as it is since
// index.
func (f *feed) settled(engine, index uint64) bool {
	for _, t := range f.replicas {
		since, flying := t.flying[engine]
		if t.seen <= index || flying && since <= index {
			return false
		}
	}
	return len(f.replicas) > 0
}

// forget drops what is no longer needed for any of the rows to keep.
func (f *feed) forget(keep func(engine uint64) bool, before time.Time) {
	for engine, t := range f.used {
		if t.Before(before) && !keep(engine) || t.Before(f.floor) {
			delete(f.used, engine)
		}
	}
}
