package idle

import "time"

// idleFor returns how long an engine has been idle; it is not idle while it is kept awake.
func idleFor(now, used, woke, keptAwake time.Time) time.Duration {
	since := used
	if woke.After(since) {
		since = woke
	}
	idle := now.Sub(since)
	if !keptAwake.IsZero() {
		// This is the only time that is compared with the clock of another machine, because
		// it was returned to the product.
		idle = min(idle, now.Round(0).Sub(keptAwake))
	}
	return idle
}

// verdict is what happens to a marked engine.
type verdict int

const (
	undecided verdict = iota
	inUse
	asleep
)

// judge decides by what the replicas have reported since the engine was marked.
func (f *feed) judge(engine uint64, used time.Time, index uint64) verdict {
	switch {
	case f.lastUsed(engine).After(used):
		return inUse
	case f.settled(engine, index):
		return asleep
	}
	return undecided
}
