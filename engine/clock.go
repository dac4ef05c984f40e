package engine

import "time"

// What is stored was written by the clock of a replica that may have been wrong, and is
// compared with the clock of another. docs/architecture.md lists these times and what a
// wrong clock does to each.

// StillWaits says whether a stored time is to be waited for, which was written to be at
// most longest away: one that is farther away was written by a clock that was ahead, and
// counts as over.
func StillWaits(at, now time.Time, longest time.Duration) bool {
	left := at.Sub(now)
	return left > 0 && left <= longest
}

// Within brings a stored deadline, which was written to be at most longest away, as near
// as that.
func Within(deadline, now time.Time, longest time.Duration) time.Time {
	if latest := now.Add(longest); deadline.After(latest) {
		return latest
	}
	return deadline
}
