// Package boot determines when an engine is usable: how it is probed, on which schedule,
// and how many engines of a product boot concurrently. It works with addresses, keys and
// times, and does not know operations.
package boot

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/internal/pause"
)

const (
	// maxProbes is the maximum number of concurrent probes of one boot: a probe that hangs
	// is overtaken by the next one, but an engine that never responds is not flooded.
	maxProbes = 4
	// overtakeAfter is how long a probe may be without a response before the next one is
	// sent.
	overtakeAfter = 100 * time.Millisecond
	// bootProbes is the maximum number of concurrent probes of all boots together. A probe
	// that is overtaken only waits, and does not count.
	bootProbes = 64
	// bootShare is the minimum time between two probes of all boots together: 2,000 in a
	// second.
	bootShare = 500 * time.Microsecond

	// breachFor and breaches are for how long and how often an engine that Nomad has started
	// must respond against the contract before that is believed. Another process may have
	// the port: one that is ending, or a foreign one. The engine's own process then fails to
	// listen and ends, which takes seconds on a busy node.
	breachFor = 5 * time.Second
	breaches  = 10

	// finestProbe and coarsestProbe limit the time between two probes of a boot.
	finestProbe   = 2 * time.Millisecond
	coarsestProbe = 200 * time.Millisecond
)

// Boots probes engines that boot until they are usable: for the first time when engines of
// their image rarely are, then often, and less often the longer the boot takes. All boots
// of this replica share a number of probes.
//
// Learning per image is worth its code: an engine that boots in 0.65 s is noticed 7 ms
// after it is usable with 21 probes, instead of 14 ms after with 68; one of 3 s 12 ms after
// with 60, instead of 62 ms after with 106 (means over boots that differ by a tenth).
type Boots struct {
	*Prober
	times bootTimes
	boots atomic.Int64  // in progress
	slots chan struct{} // one per concurrent probe
}

// NewBoots returns Boots that send probes with p.
func NewBoots(p *Prober) *Boots {
	return &Boots{Prober: p, slots: make(chan struct{}, bootProbes)}
}

// firstProbe returns when an engine is first probed, if engines of its kind need the time
// expected: early enough to notice that they have become faster.
func firstProbe(expected time.Duration) time.Duration { return expected * 6 / 10 }

// nextProbe returns the time to the next probe, elapsed after the start. An unknown
// expected time (0) counts as passed from the beginning.
func nextProbe(elapsed, expected time.Duration) time.Duration {
	fine := min(max(expected/50, finestProbe), 10*finestProbe)
	return min(fine+max(elapsed-expected, 0)/25, coarsestProbe)
}

// spread adjusts the time between two probes to the number of boots: it is at least the
// boot's share, and randomly (chance is from 0 to 1) a quarter longer or shorter, so that
// boots that began together are not probed together.
func spread(d time.Duration, boots int64, chance float64) time.Duration {
	d = max(d, time.Duration(boots)*bootShare)
	return time.Duration(float64(d) * (0.75 + chance/2))
}

// AwaitUsable sends probes until the engine is usable. kind is what to expect of a process
// that is started now; nil: it may run already. *breach: Nomad has started the process, and
// it repeatedly responds against the contract. Otherwise it returns the error of ctx.
func (b *Boots) AwaitUsable(ctx context.Context, url string, by Proof, kind *Kind) error {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	b.boots.Add(1)
	defer b.boots.Add(-1)

	began, expected := time.Now(), time.Duration(0)
	if kind != nil {
		expected = b.times.expected(*kind)
	}
	if expected > 0 && !pause.For(ctx, spread(firstProbe(expected), 0, rand.Float64())) {
		return ctx.Err()
	}
	answers, inFlight := make(chan error, maxProbes), 0
	var broke int       // how often it broke the contract since Nomad had started it,
	var since time.Time // and when first
	for {
		if inFlight < maxProbes {
			free, ok := b.take(ctx)
			if !ok {
				return ctx.Err()
			}
			inFlight++
			probes.Go(func() {
				defer free()
				answers <- b.usable(ctx, url, by)
			})
		}
		overtake := time.NewTimer(overtakeAfter)
		select {
		case <-ctx.Done():
			overtake.Stop()
			return ctx.Err()
		case err := <-answers:
			inFlight--
			if err == nil {
				overtake.Stop()
				if kind != nil {
					b.times.learn(*kind, time.Since(began), b.boots.Load() <= quietBoots)
				}
				return nil
			}
			var broken *Breach
			if errors.As(err, &broken) && (broke > 0 || by.Runs(ctx)) { // other errors may be temporary
				if broke++; broke == 1 {
					since = time.Now()
				}
				if broke >= breaches && time.Since(since) >= breachFor && by.Runs(ctx) {
					overtake.Stop()
					return broken
				}
			}
		case <-overtake.C:
		}
		overtake.Stop()
		if !pause.For(ctx, spread(nextProbe(time.Since(began), expected), b.boots.Load(), rand.Float64())) {
			return ctx.Err()
		}
	}
}

// Expected returns the minimum time of most boots of a kind; 0: unknown.
func (b *Boots) Expected(k Kind) time.Duration { return b.times.expected(k) }

// take waits for a probe's turn. The turn ends with free, or when the probe has taken so
// long that it only waits.
func (b *Boots) take(ctx context.Context) (free func(), ok bool) {
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, false
	}
	once := sync.OnceFunc(func() { <-b.slots })
	late := time.AfterFunc(overtakeAfter, once)
	return func() { late.Stop(); once() }, true
}

// Kind is a kind of boots that are expected to take equally long. (A service has one
// driver.)
type Kind struct {
	Image string
	First bool // whether it is the first boot of a new brain
}

const (
	// maxBootKinds limits the number of remembered kinds.
	maxBootKinds = 512
	// quietBoots is the maximum number of concurrent boots whose duration is
	// representative: those in a burst wait for each other.
	quietBoots = 4
)

// bootTimes remembers how long boots took, from when the process may exist to its first
// good response.
type bootTimes struct {
	mu   sync.Mutex
	took map[Kind]time.Duration
}

// expected returns the minimum time of most boots of a kind; 0: unknown.
func (t *bootTimes) expected(k Kind) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.took[k]
}

// learn remembers the duration of a boot; one in a burst only if it was short.
func (t *bootTimes) learn(k Kind, took time.Duration, quiet bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !quiet && took >= t.took[k] {
		return
	}
	if t.took == nil {
		t.took = map[Kind]time.Duration{}
	}
	before, known := t.took[k]
	if !known && len(t.took) >= maxBootKinds {
		for other := range t.took { // an arbitrary one
			delete(t.took, other)
			break
		}
	}
	t.took[k] = lowTime(before, took)
}

// lowTime follows the shorter ones of the times: down by half the difference, up by a
// twentieth of it, but by at most a fiftieth of itself. About one time in ten is below it.
func lowTime(before, took time.Duration) time.Duration {
	switch {
	case before == 0:
		return took
	case took < before:
		return before - (before-took)/2
	}
	return before + min((took-before)/20, before/50)
}
