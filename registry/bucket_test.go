package registry

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// In whatever order replicas take, hold and give back tokens, every window of time sees at
// most the burst and the inflow during it; a caller that asks for long enough gets nearly
// all of that.
func TestBucketBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rpm := rapid.SampledFrom([]int{1, 6, 60, 100, 6000, 60_000}).Draw(t, "rpm")
		var (
			b       bucket
			now     = time.Unix(1_000_000, 0)
			leases  [3]bucketLease
			used    []time.Time
			pending [3]bucketLease // the previous lease, to be given back
		)
		use := func(n int) {
			for range n {
				used = append(used, now)
			}
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "pause")))
			r := rapid.IntRange(0, 2).Draw(t, "replica")
			if h := &leases[r]; h.N > 0 && !now.Before(h.Until) {
				pending[r] = *h
				h.N = 0
			}
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0: // use some of the tokens held
				n := rapid.IntRange(0, leases[r].N).Draw(t, "use")
				leases[r].N -= n
				pending[r] = bucketLease{0, leases[r].Until}
				use(n)
			case 1: // a crash: all tokens held are lost
				leases[r], pending[r] = bucketLease{}, bucketLease{}
			case 2:
				if leases[r].N > 0 {
					continue
				}
				needed := rapid.IntRange(1, 20).Draw(t, "needed")
				spare := rapid.IntRange(0, max(1, rpm/60)).Draw(t, "spare")
				granted, kept := b.take(needed, spare, pending[r], rpm, now)
				pending[r] = bucketLease{}
				if granted < 0 || granted > needed+spare || b.Tokens < 0 {
					t.Fatalf("granted %d of %d+%d, %f left", granted, needed, spare, b.Tokens)
				}
				use(min(granted, needed))
				leases[r] = kept
			}
		}
		for i := range used {
			for j := i; j < len(used); j++ {
				window := used[j].Sub(used[i])
				if most := burst(rpm) + window.Minutes()*float64(rpm) + 1e-6; float64(j-i+1) > most {
					t.Fatalf("%d used within %s at %d per minute, at most %.2f are allowed", j-i+1, window, rpm, most)
				}
			}
		}
	})
}

// Three replicas that ask as soon as a token may be available get the whole rate.
func TestBucketGivesTheRate(t *testing.T) {
	for _, rpm := range []int{1, 6, 60, 6000, 60_000} {
		t.Run(fmt.Sprint(rpm), func(t *testing.T) {
			var b bucket
			now := time.Unix(1_000_000, 0)
			began, granted := now, 0
			for i := 0; now.Sub(began) < 10*time.Minute; i++ {
				n, _ := b.take(max(1, rpm/600), 0, bucketLease{}, rpm, now)
				granted += n
				next, _ := b.next()
				now = now.Add(max(next, 100*time.Millisecond))
			}
			want := burst(rpm) + now.Sub(began).Minutes()*float64(rpm)
			if got := float64(granted); got > want+1e-6 || got < 0.98*want-2 {
				t.Errorf("%.0f granted in 10 minutes, want about %.0f", got, want)
			}
		})
	}
}

// skewed is a replica with an arbitrary wall clock; its monotonic clock follows real time.
type skewed struct {
	clock bucketClock
	off   time.Duration // of its wall clock
	began time.Duration // start of its monotonic clock
}

func (r *skewed) take(b *bucket, needed, rpm int, real time.Duration) int {
	mono := real - r.began
	now := r.clock.now(b, rpm, time.Unix(1_000_000, 0).Add(real+r.off), mono)
	if b.ID == "" {
		b.ID = "b"
	}
	granted, _ := b.take(needed, 0, bucketLease{}, rpm, now)
	r.clock = bucketClock{b.ID, b.At, mono}
	return granted
}

// Whatever the wall clocks of the replicas say (ahead, behind, jumping), the grants never
// exceed the burst and the rate times real time, except for what a starting replica takes
// on trust; and callers are never starved for longer than a second, or than the time for
// one token.
func TestBucketWithWrongClocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rpm := rapid.SampledFrom([]int{1, 6, 60, 100, 6000, 60_000}).Draw(t, "rpm")
		offset := rapid.OneOf(rapid.Just(time.Duration(0)), rapid.Map(rapid.Int64Range(-7200, 7200), func(s int64) time.Duration { return time.Duration(s) * time.Second }))
		replicas := [3]skewed{}
		var b bucket
		if rapid.Bool().Draw(t, "one of a version before, in the future") {
			b = bucket{At: time.Unix(1_000_000, 0).Add(30 * time.Minute), RPM: rpm}
		}
		var real time.Duration
		granted, starts := 0, 3
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			r := &replicas[rapid.IntRange(0, 2).Draw(t, "replica")]
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				r.off = offset.Draw(t, "offset")
			case 1:
				if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
					*r, starts = skewed{off: r.off, began: real}, starts+1
				}
			default:
				granted += r.take(&b, rapid.IntRange(1, 20_000).Draw(t, "needed"), rpm, real)
			}
			real += time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "pause"))
		}
		trusted := float64(starts) * wallTrust(rpm).Minutes() * float64(rpm)
		if most := burst(rpm) + real.Minutes()*float64(rpm) + trusted + 1e-6; float64(granted) > most {
			t.Fatalf("%d given in %s at %d per minute, at most %.2f are allowed", granted, real, rpm, most)
		}
		// From now on all clocks agree, and the bucket is empty. (A replica that read it
		// before the others advanced its time learns that at its next call.)
		for i := range 2 * len(replicas) {
			r := &replicas[i%len(replicas)]
			r.off = 0
			r.take(&b, 1_000_000, rpm, real)
		}
		token := time.Minute / time.Duration(rpm)
		soon := real + max(time.Second, wallTrust(rpm)) + token + time.Millisecond
		if got := replicas[0].take(&b, 1, rpm, soon); got != 1 {
			t.Fatalf("no token within %s after the clocks agree, at %d per minute: %+v", soon-real, rpm, b)
		}
	})
}

// One replica is half an hour ahead for five seconds, the other is not.
func TestBucketOutlivesAClockAhead(t *testing.T) {
	const rpm = 60
	var b bucket
	good, bad := skewed{}, skewed{off: 30 * time.Minute}
	good.take(&b, 100, rpm, 0)
	given := 0
	for at := time.Duration(0); at <= 5*time.Second; at += 100 * time.Millisecond {
		given += bad.take(&b, 1, rpm, at) + good.take(&b, 1, rpm, at)
	}
	if given < 4 || given > 7 {
		t.Errorf("%d calls were let through in 5 s at one a second", given)
	}
	later := skewed{began: 6 * time.Second} // after a restart
	if got := later.take(&b, 100, rpm, 8*time.Second); got < 1 || got > 3 {
		t.Errorf("after 1.5 s it grants %d", got)
	}
}

func TestBucketPolicyChange(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var b bucket
	b.take(100, 0, bucketLease{}, 600, now) // empty, of 100
	if got, _ := b.take(1000, 0, bucketLease{}, 60_000, now.Add(time.Second)); got != 10 {
		t.Errorf("a raised limit granted %d for a second of the old one, want 10", got)
	}
	b = bucket{}
	b.take(1, 0, bucketLease{}, 60_000, now) // 9999 of 10,000
	if got, _ := b.take(1000, 0, bucketLease{}, 60, now); got != 10 {
		t.Errorf("a lowered limit granted %d, want its burst of 10", got)
	}
}

// Returned tokens of a lease are available again, but not in addition to the inflow that
// belongs in their place.
func TestBucketTakesBack(t *testing.T) {
	const rpm = 100 // a burst of 16.67
	for name, later := range map[string]time.Duration{"as it ends": leaseTime, "late": leaseTime + returnTime, "too late": leaseTime + returnTime + time.Nanosecond} {
		t.Run(name, func(t *testing.T) {
			var b bucket
			now := time.Unix(1_000_000, 0)
			if _, lease := b.take(1, 1, bucketLease{}, rpm, now); lease.N != 1 {
				t.Fatalf("leased %+v", lease)
			} else if one, _ := b.take(1, 0, bucketLease{}, rpm, now.Add(later)); one != 1 {
				t.Fatalf("another replica got %d", one)
			} else if rest, _ := b.take(20, 0, lease, rpm, now.Add(later)); rest > 15 {
				t.Errorf("then %d more in the same moment, of a burst of 16", rest)
			}
		})
	}
	var b bucket
	now := time.Unix(1_000_000, 0)
	_, lease := b.take(5, 5, bucketLease{}, 60, now) // of 10
	if got, _ := b.take(10, 0, lease, 60, now.Add(leaseTime)); got != 6 {
		t.Errorf("%d tokens, want the 5 returned ones and the inflow of a second", got)
	}
}
