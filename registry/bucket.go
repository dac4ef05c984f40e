package registry

import (
	"math"
	"slices"
	"time"
)

const (
	// leaseTime is how long leased tokens may be used.
	leaseTime = time.Second
	// returnTime is how long after leaseTime unused tokens may be returned.
	returnTime = time.Second
	// burstShare: a bucket contains at most what flows in during a sixth of a minute.
	burstShare = 6
)

// bucket is a product's token bucket, as stored in Consul. Tokens that are leased and may
// still be used or returned count as in the bucket. So in any time T, all replicas together
// use at most the burst and T times the rate.
//
// The bucket has its own time, At. The replicas advance it by what their monotonic clocks
// measure (bucketClock), so that fast or slow wall clocks have almost no effect.
type bucket struct {
	// ID is new for each bucket, so that no replica applies what it knows of another
	// bucket.
	ID     string        `json:"id,omitempty"`
	Tokens float64       `json:"tokens"`
	At     time.Time     `json:"at"`
	RPM    int           `json:"rpm"`
	Leases []bucketLease `json:"leases,omitempty"`
}

// bucketClock is what a replica knows of a bucket's time: the time that it read, and when,
// by the replica's own monotonic clock.
type bucketClock struct {
	id   string
	at   time.Time
	read time.Duration
}

// now returns a bucket's current time. All replicas that have read it agree on it, whatever
// their wall clocks show. A replica that reads the bucket for the first time has only its
// wall clock to determine the bucket's age. It trusts this clock for at most a second, or
// the time of one token if that is longer. So a fast clock adds at most that, once, and a
// slow one lets nobody wait longer.
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

// wallTrust is the maximum age of a bucket that a wall clock may determine.
func wallTrust(rpm int) time.Duration {
	return max(time.Second, time.Minute/time.Duration(max(1, rpm)))
}

// bucketLease is a number of tokens that a replica may use until a time. The time also
// identifies the lease when it is returned.
type bucketLease struct {
	N     int       `json:"n"`
	Until time.Time `json:"until"`
}

func burst(rpm int) float64 { return math.Max(1, float64(rpm)/burstShare) }

// fill adds what flowed in since At, up to the capacity. A missing bucket, or one of
// another limit, becomes one of this limit.
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

// rate returns the lower of the limits before and after a change, because tokens from
// before flowed in at the earlier rate.
func (b *bucket) rate(rpm int) int {
	if b.RPM > 0 {
		return min(b.RPM, rpm)
	}
	return rpm
}

// take grants needed tokens, which are used at once, and spare tokens, which may be used
// until the lease ends (kept). back is the previous lease, with its unused tokens.
func (b *bucket) take(needed, spare int, back bucketLease, rpm int, now time.Time) (granted int, kept bucketLease) {
	for i, l := range b.Leases {
		if l.Until.Equal(back.Until) { // otherwise it ended long ago, and its tokens have flowed in again
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

// next returns the time until there is a whole token, and the time until the bucket is
// full.
func (b *bucket) next() (next, full time.Duration) {
	in := func(tokens float64) time.Duration {
		if tokens <= 0 {
			return 0
		}
		return time.Duration(tokens / float64(b.RPM) * float64(time.Minute))
	}
	return in(1 - b.Tokens), in(burst(b.RPM) - b.Tokens)
}
