package registry

import (
	"math"
	"slices"
	"time"
)

const (
	// leaseTime is how long leased tokens may be used (DESIGN section 5).
	leaseTime = time.Second
	// returnTime is how long after that what was not used may be given back.
	returnTime = time.Second
	// burstShare: a bucket holds what flows in during a sixth of a minute (SPEC
	// section 5).
	burstShare = 6
)

// bucket is a product's token bucket as it stands in Consul. What is leased and
// may still be used or given back counts as in the bucket, so that in any time T no
// more than the burst and T times the rate are used, by all replicas together.
//
// It has a time of its own, At, which the replicas move on by what has passed on their
// monotonic clocks (bucketClock): what their wall clocks say, ahead or behind, changes
// next to nothing.
type bucket struct {
	// ID is new with each bucket, so that no replica goes by what it read of another.
	ID     string        `json:"id,omitempty"`
	Tokens float64       `json:"tokens"`
	At     time.Time     `json:"at"`
	RPM    int           `json:"rpm"`
	Leases []bucketLease `json:"leases,omitempty"`
}

// bucketClock is what a replica knows of a bucket's time: what it was, and when that was
// by the replica's own monotonic clock.
type bucketClock struct {
	id   string
	at   time.Time
	read time.Duration
}

// now is a bucket's time now. All replicas that have read it agree on that, whatever
// their wall clocks say: real time is the same for all. One that reads the bucket for the
// first time has its wall clock alone to tell how old it is, and trusts that for a second
// or for one token, whichever is longer: so a clock that is ahead gives no more than that,
// once, and nobody waits longer for it.
func (c bucketClock) now(b *bucket, rpm int, wall time.Time, mono time.Duration) time.Time {
	switch {
	case b.At.IsZero():
		return wall.Round(0)
	case b.ID != "" && b.ID == c.id:
		if now := c.at.Add(mono - c.read); now.After(b.At) {
			return now
		}
		return b.At
	}
	return b.At.Add(min(max(0, wall.Sub(b.At)), wallTrust(rpm)))
}

// wallTrust is how much of a bucket's age may be a wall clock's word.
func wallTrust(rpm int) time.Duration {
	return max(time.Second, time.Minute/time.Duration(max(1, rpm)))
}

// bucketLease are tokens that a replica may use until then; the time is also by
// what it names the lease when it gives it back.
type bucketLease struct {
	N     int       `json:"n"`
	Until time.Time `json:"until"`
}

func burst(rpm int) float64 { return math.Max(1, float64(rpm)/burstShare) }

// fill lets time pass: what flowed in, up to what fits. A bucket of another
// limit, or none, becomes one of this.
func (b *bucket) fill(rpm int, now time.Time) {
	if b.At.IsZero() {
		b.Tokens, b.At = burst(rpm), now
	}
	if elapsed := now.Sub(b.At); elapsed > 0 {
		b.Tokens += elapsed.Minutes() * float64(b.rate(rpm))
		b.At = now
	}
	b.RPM = rpm
	room, living := burst(rpm), b.Leases[:0]
	for _, l := range b.Leases {
		if l.Until.Add(returnTime).After(b.At) {
			room -= float64(l.N)
			living = append(living, l)
		}
	}
	b.Leases = living
	b.Tokens = math.Min(b.Tokens, math.Max(0, room))
}

// rate is the slower of the limits before and after a change: tokens of the time
// before flowed in by the one before.
func (b *bucket) rate(rpm int) int {
	if b.RPM > 0 {
		return min(b.RPM, rpm)
	}
	return rpm
}

// take gives needed tokens, which are used at once, and spare ones, which may be
// used until the lease ends: kept. back is the lease before, with what was not used
// of it.
func (b *bucket) take(needed, spare int, back bucketLease, rpm int, now time.Time) (granted int, kept bucketLease) {
	for i, l := range b.Leases {
		if l.Until.Equal(back.Until) { // else it is long over, and its tokens have flowed in again
			b.Tokens += float64(min(back.N, l.N))
			b.Leases = slices.Delete(b.Leases, i, i+1)
			break
		}
	}
	b.fill(rpm, now)
	granted = min(needed+spare, int(b.Tokens))
	b.Tokens -= float64(granted)
	if n := granted - needed; n > 0 {
		kept = bucketLease{n, now.Add(leaseTime)}
		b.Leases = append(b.Leases, kept)
	}
	return granted, kept
}

// next is how long it takes until there is a whole token, and full until the
// bucket is full.
func (b *bucket) next() (next, full time.Duration) {
	in := func(tokens float64) time.Duration {
		if tokens <= 0 {
			return 0
		}
		return time.Duration(tokens / float64(b.RPM) * float64(time.Minute))
	}
	return in(1 - b.Tokens), in(burst(b.RPM) - b.Tokens)
}
