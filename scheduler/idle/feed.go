package idle

import (
	"time"

	"github.com/septemberai/orch/registry"
)

// brokenAfter is how long the leader may hear nothing before it takes all that it
// knew of who is idle for stale.
const brokenAfter = 8 * flushEvery

// feed is what the leader knows of the admits on all replicas: pure, so that it
// can be checked on every interleaving. No clocks are compared between machines:
// an engine was in use when the leader heard of it, by the leader's own clock.
type feed struct {
	// floor is since when the leader can know that an engine is idle. Whatever
	// may have been missed raises it to now: every engine is given a full idle
	// period then.
	floor    time.Time
	at       time.Time // of the last view
	used     map[uint64]time.Time
	replicas map[string]*teller
}

// teller is a replica as its last flush told.
type teller struct {
	born   uint64 // another for each of its sessions
	seq    uint64 // of the last flush
	seen   uint64
	flying map[uint64]uint64
}

func newFeed() *feed { return &feed{used: map[uint64]time.Time{}, replicas: map[string]*teller{}} }

// observe takes over a view, read before now.
func (f *feed) observe(view *registry.Activity, now time.Time) {
	missed := f.at.IsZero() || now.Sub(f.at) > brokenAfter
	f.at = now
	for id, t := range f.replicas {
		if view.Replicas[id] != t.born {
			// It is gone, or was: what it did not tell any more is not known.
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

// lastUsed is when an engine was last in use, as far as the leader can know.
func (f *feed) lastUsed(engine uint64) time.Time {
	if t := f.used[engine]; t.After(f.floor) {
		return t
	}
	return f.floor
}

// settled says whether every admit that can have read the engine's row before
// index is answered, and told of if it was granted. Each replica that was there
// in the last view must have looked after index, at a moment when none of its
// admits was under way that arrived before it knew of an index beyond.
//
// Once true it stays true: a replica that comes later, and an admit that comes
// later, read the row as it is since index.
func (f *feed) settled(engine, index uint64) bool {
	for _, t := range f.replicas {
		since, flying := t.flying[engine]
		if t.seen <= index || flying && since <= index {
			return false
		}
	}
	return len(f.replicas) > 0
}

// forget drops what no row of those that are kept needs any more.
func (f *feed) forget(keep func(engine uint64) bool, before time.Time) {
	for engine, t := range f.used {
		if t.Before(before) && !keep(engine) || t.Before(f.floor) {
			delete(f.used, engine)
		}
	}
}
