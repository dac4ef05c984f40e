package engine

import "time"

// A stored time was written by the clock of one replica, which may have been wrong, and is
// compared with the clock of another. docs/architecture.md lists these times, and the
// effect of a wrong clock on each.

// StillWaits reports whether a stored time is still in the future. When it was written, it
// was at most longest away. A time that is farther away was written by a fast clock, and
// counts as past.
func StillWaits(at, now time.Time, longest time.Duration) bool {
	left := at.Sub(now)
	return left > 0 && left <= longest
}

// Within limits a stored deadline to at most longest after now. When it was written, it was
// no farther away.
func Within(deadline, now time.Time, longest time.Duration) time.Time {
	if latest := now.Add(longest); deadline.After(latest) {
		return latest
	}
	return deadline
}
