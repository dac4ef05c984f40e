package scheduler

import (
	"slices"
	"sync"
	"time"
)

// firstProbe learns, per image and way of starting it, when the first probe is
// worth sending. A probe that reaches a container's published port before its
// network is up costs a full second (ARP and SYN retry; measured); one that
// comes late costs what it is late. An engine's uptime tells how early it could
// have been asked, so one boot teaches both.
type firstProbe struct {
	// unknown is the delay of what was not started often enough yet; zero: early
	// probes cost nothing, and there is nothing to learn.
	unknown time.Duration

	mu     sync.Mutex
	starts map[string][]time.Duration // the last ones: until the process ran
}

const (
	// containerDelay is about what a container needs from its planning to its
	// first answer (DESIGN section 4: 300 to 410 ms through Nomad).
	containerDelay = 300 * time.Millisecond
	// maxFirstDelay: waiting longer than that costs about as much as the second
	// that it saves.
	maxFirstDelay = 800 * time.Millisecond
	// startsKept bounds for how long one slow start delays the next ones.
	startsKept = 12
	// startsNeeded is how many starts say more than containerDelay.
	startsNeeded = 3
	// firstMargin is for starts slower than those that were seen.
	firstMargin = 15 * time.Millisecond
)

// delay is how long to wait before the first probe.
func (f *firstProbe) delay(what string) time.Duration {
	if f.unknown == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.starts[what]
	if len(seen) == 0 {
		return f.unknown
	}
	d := min(slices.Max(seen)+firstMargin, maxFirstDelay)
	if len(seen) < startsNeeded {
		d = max(d, f.unknown)
	}
	return d
}

// learn notes a start that was waited for since began and has just answered;
// started is since when its process runs, zero when the engine does not say.
func (f *firstProbe) learn(what string, began, started time.Time) {
	if f.unknown == 0 {
		return
	}
	took := time.Since(began)
	if started.IsZero() {
		took -= took / 8 // so that the delay creeps down to where a probe fails
	} else {
		took = min(took, max(0, started.Sub(began)))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.starts == nil {
		f.starts = map[string][]time.Duration{}
	}
	seen := append(f.starts[what], took)
	f.starts[what] = seen[max(0, len(seen)-startsKept):]
}
