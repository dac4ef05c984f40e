// Package boot finds out when an engine is usable: what it is asked, by what schedule, and
// how many engines of a product boot at a time. It knows addresses, keys and times, and
// nothing of operations.
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
	// maxProbes in flight for one boot: a probe that hangs is overtaken by the
	// next, but an engine that answers none is not flooded.
	maxProbes = 4
	// overtakeAfter is when a probe that has no answer yet is overtaken.
	overtakeAfter = 100 * time.Millisecond
	// bootProbes is how many probes of all boots together are in flight; one that
	// is overtaken costs nothing any more, and does not count.
	bootProbes = 64
	// bootShare is the time between two probes of all boots together, when there
	// are many: 2,000 in a second.
	bootShare = 500 * time.Microsecond

	// breachFor and breaches are how long and how often an engine may answer against the
	// contract before it is believed: a process that is on its way out may hold the port.
	breachFor = 2 * time.Second
	breaches  = 10

	// finestProbe and coarsestProbe bound the time between two probes of a boot.
	finestProbe   = 2 * time.Millisecond
	coarsestProbe = 200 * time.Millisecond
)

// Boots asks engines that boot until they are usable: first when engines of
// their image seldom are, then often, and less often the later they are. All boots
// of this replica share what it may ask.
//
// What was learned of an image is worth its code: an engine that boots in 0.65 s is seen
// 7 ms after it is usable with 21 probes, else 14 ms after with 68; one of 3 s 12 ms after
// with 60, else 62 ms after with 106 (means over boots that differ by a tenth).
type Boots struct {
	*Prober
	times bootTimes
	boots atomic.Int64  // under way
	slots chan struct{} // one per probe in flight
}

// NewBoots returns Boots that ask by p.
func NewBoots(p *Prober) *Boots {
	return &Boots{Prober: p, slots: make(chan struct{}, bootProbes)}
}

// firstProbe is when an engine is asked first, if engines of its kind need about
// so long: early enough to notice that they need less by now.
func firstProbe(expected time.Duration) time.Duration { return expected * 6 / 10 }

// nextProbe is the time to the next probe of an engine that was asked since so
// long. What is not known yet (0) counts as late from the beginning.
func nextProbe(elapsed, expected time.Duration) time.Duration {
	fine := min(max(expected/50, finestProbe), 10*finestProbe)
	return min(fine+max(elapsed-expected, 0)/25, coarsestProbe)
}

// spread is a time between probes when so many boots are under way: no less than
// each one's share, and by chance (0 to 1) a quarter more or less, so that boots
// that began together are not asked together.
func spread(d time.Duration, boots int64, chance float64) time.Duration {
	d = max(d, time.Duration(boots)*bootShare)
	return time.Duration(float64(d) * (0.75 + chance/2))
}

// AwaitUsable asks until the engine is usable. kind says what to expect of a process
// that is started now; nil: it may run already. *breach: Nomad has started its process,
// and it answers against the contract, again and again. The error of ctx.
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
	var broke int       // how often it broke the contract,
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
			if errors.As(err, &broken) { // what is said else is of the moment
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

// Expected is what most boots of a kind take at least; 0: not known.
func (b *Boots) Expected(k Kind) time.Duration { return b.times.expected(k) }

// take waits for a probe's turn. It is given back by free, or when the probe has
// taken so long that it only waits.
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

// Kind is what boots are expected to take alike. (A service has one driver.)
type Kind struct {
	Image string
	First bool // of a new brain
}

const (
	// maxBootKinds bounds what is remembered.
	maxBootKinds = 512
	// quietBoots is up to how many boots at a time say what their image needs: those
	// of a burst wait for each other.
	quietBoots = 4
)

// bootTimes remembers how long boots took, from when the process may be there to
// its first good answer.
type bootTimes struct {
	mu   sync.Mutex
	took map[Kind]time.Duration
}

// Expected is what most boots of a kind take at least; 0: not known.
func (t *bootTimes) expected(k Kind) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.took[k]
}

// learn remembers what a boot took; one in a burst only if it was short.
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
		for other := range t.took { // any
			delete(t.took, other)
			break
		}
	}
	t.took[k] = lowTime(before, took)
}

// lowTime follows the shorter ones of the times that it is told: down by half the
// way, up by a twentieth, and by no more than a fiftieth of itself. About one in
// ten stays below it.
func lowTime(before, took time.Duration) time.Duration {
	switch {
	case before == 0:
		return took
	case took < before:
		return before - (before-took)/2
	}
	return before + min((took-before)/20, before/50)
}
