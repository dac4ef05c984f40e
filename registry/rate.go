package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Verdict is the result of one rate-limited call.
type Verdict struct {
	Allowed bool
	// Limit is the number of calls per minute. Remaining is how many more are allowed now,
	// as far as this replica knows.
	Limit, Remaining int
	// Reset is the time until the whole burst is available again. RetryAfter is when a
	// refused call may succeed.
	Reset, RetryAfter time.Duration
}

// Limiter limits the calls per product of all replicas together. It leases whole tokens of
// one bucket per product, so that most calls need no remote call.
type Limiter struct {
	store *Store
	began time.Time // zero of the monotonic clock

	mu     sync.Mutex
	leases map[string]*lease
}

// NewLimiter returns a limiter; every replica has one.
func (s *Store) NewLimiter() *Limiter {
	return &Limiter{store: s, began: time.Now(), leases: map[string]*lease{}}
}

// lease is what this replica has of one product's bucket.
type lease struct {
	mu     sync.Mutex
	rpm    int
	tokens int
	until  time.Time
	unused int         // expired, to be returned
	lent   bucketLease // as recorded in the bucket
	clock  bucketClock // used by one exchange at a time

	callers    int           // in Allow, without a result yet
	exchange   chan struct{} // closed when the exchange in progress has ended; nil: none
	err        error         // of the last exchange
	emptyUntil time.Time     // no token can be available before
	left       int           // whole tokens left in the bucket by the last exchange
	full       time.Time

	second time.Time // the recent rate: calls in this second, and in the previous one
	calls  int
	before int
}

// maxExchanges limits the check-and-set attempts of one exchange.
const maxExchanges = 20

const (
	// spareShare: spare tokens are leased for this part of a second.
	spareShare = 2
	// spareFrom is the number of calls per second from which on spare tokens are leased.
	spareFrom = 10
)

// Allow takes one token of a product's rate limit of rpm calls per minute. ErrUnavailable:
// the bucket cannot be reached.
func (l *Limiter) Allow(ctx context.Context, productID string, rpm int) (Verdict, error) {
	if rpm <= 0 {
		return Verdict{Reset: time.Minute, RetryAfter: time.Minute}, nil
	}
	l.mu.Lock()
	at := l.leases[productID]
	if at == nil {
		at = &lease{}
		l.leases[productID] = at
	}
	l.mu.Unlock()
	return at.allow(ctx, rpm, func(needed, spare int, back bucketLease) (int, bucketLease, bucket, error) {
		return l.exchange(context.WithoutCancel(ctx), &at.clock, productID, rpm, needed, spare, back)
	})
}

// exchangeFunc returns the previous lease (back) and gets a new one. Of the granted tokens,
// those that are not needed at once are kept.
type exchangeFunc func(needed, spare int, back bucketLease) (granted int, kept bucketLease, left bucket, err error)

func (a *lease) allow(ctx context.Context, rpm int, exchange exchangeFunc) (Verdict, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.callers++
	defer func() { a.callers-- }()
	a.count(time.Now())
	for {
		now := time.Now()
		if a.rpm != rpm { // the policy has changed, so the old lease is void
			a.unused, a.tokens, a.rpm, a.emptyUntil = 0, 0, rpm, time.Time{}
		}
		if a.tokens > 0 && !now.Before(a.until) {
			a.unused, a.tokens = a.tokens, 0
		}
		switch {
		case a.tokens > 0:
			a.tokens--
			return a.verdict(true, now), nil
		case now.Before(a.emptyUntil):
			return a.verdict(false, now), nil
		}
		if under := a.exchange; under != nil {
			a.mu.Unlock()
			var err error
			select {
			case <-under:
			case <-ctx.Done():
				err = unavailable(ctx.Err())
			}
			a.mu.Lock()
			if err == nil {
				err = a.err
			}
			if err != nil {
				return Verdict{}, err
			}
			continue
		}
		if err := a.refill(rpm, exchange); err != nil {
			return Verdict{}, err
		}
	}
}

// refill exchanges tokens with the bucket for all waiting callers. The caller holds the
// lock, which is released during the exchange.
func (a *lease) refill(rpm int, exchange exchangeFunc) error {
	needed, back := a.callers, bucketLease{a.unused, a.lent.Until}
	spare := 0
	if recent := max(a.before, a.calls); recent >= spareFrom {
		spare = min(recent/spareShare, rpm/60)
	}
	done := make(chan struct{})
	a.exchange, a.unused, a.lent = done, 0, bucketLease{}
	a.mu.Unlock()
	granted, kept, left, err := exchange(needed, spare, back)
	a.mu.Lock()
	defer close(done)
	a.exchange, a.err, a.lent = nil, err, kept
	if err != nil {
		return err
	}
	now := time.Now()
	next, full := left.next()
	a.tokens, a.until = granted, now.Add(leaseTime)
	a.left, a.full = int(left.Tokens), now.Add(full)
	if granted < needed {
		a.emptyUntil = now.Add(next)
	}
	return nil
}

// count measures the recent rate of calls.
func (a *lease) count(now time.Time) {
	switch since := now.Sub(a.second); {
	case since >= 2*time.Second:
		a.second, a.before, a.calls = now, 0, 0
	case since >= time.Second:
		a.second, a.before, a.calls = now, a.calls, 0
	}
	a.calls++
}

func (a *lease) verdict(allowed bool, now time.Time) Verdict {
	v := Verdict{Allowed: allowed, Limit: a.rpm, Remaining: a.tokens + a.left, Reset: max(0, a.full.Sub(now))}
	if !allowed {
		v.Remaining, v.RetryAfter = 0, max(time.Second, a.emptyUntil.Sub(now))
	}
	return v
}

// exchange takes tokens from a product's bucket and returns unused ones, by check-and-set.
// clock is what the replica knows of the bucket's time; it is updated.
func (l *Limiter) exchange(ctx context.Context, clock *bucketClock, productID string, rpm, needed, spare int, back bucketLease) (granted int, kept bucketLease, left bucket, err error) {
	s, key := l.store, l.store.rateKey(productID)
	for range maxExchanges {
		pair, err := s.get(ctx, key)
		if err != nil {
			return 0, kept, left, err
		}
		left = bucket{}
		index := uint64(0)
		if pair != nil {
			index = pair.ModifyIndex
			if json.Unmarshal(pair.Value, &left) != nil {
				left = bucket{} // damaged: treated as missing
			}
		}
		mono := time.Since(l.began)
		now := clock.now(&left, rpm, time.Now().UTC(), mono)
		named := left.ID != ""
		if !named { // it is new, damaged, or from an earlier version
			left.ID = rand.Text()
		}
		granted, kept = left.take(needed, spare, back, rpm, now)
		if named && granted == 0 && back.N == 0 {
			*clock = bucketClock{left.ID, left.At, mono}
			return 0, kept, left, nil // only the time changed
		}
		_, _, err = s.txn(ctx, consul.KVTxnOps{{Verb: consul.KVCAS, Key: key, Value: encode(left), Index: index}})
		if !errors.Is(err, ErrConflict) {
			*clock = bucketClock{left.ID, left.At, mono}
			return granted, kept, left, err
		}
	}
	return 0, kept, left, fmt.Errorf("%w: too many concurrent writes to the rate limit's bucket", ErrUnavailable)
}
