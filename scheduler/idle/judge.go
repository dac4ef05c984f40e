package idle

import "time"

// idleFor is how long an engine has been idle, which it is not as long as it is
// kept awake.
func idleFor(now, used, woke, keptAwake time.Time) time.Duration {
	since := used
	if woke.After(since) {
		since = woke
	}
	idle := now.Sub(since)
	if !keptAwake.IsZero() {
		// The one clock that is compared with another machine's: the product was
		// told this time.
		idle = min(idle, now.Round(0).Sub(keptAwake))
	}
	return idle
}

// verdict is what becomes of an engine that is marked.
type verdict int

const (
	undecided verdict = iota
	inUse
	asleep
)

// judge says what the replicas have told since the engine was marked.
func (f *feed) judge(engine uint64, used time.Time, index uint64) verdict {
	switch {
	case f.lastUsed(engine).After(used):
		return inUse
	case f.settled(engine, index):
		return asleep
	}
	return undecided
}
