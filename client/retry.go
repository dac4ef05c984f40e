package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"syscall"
	"time"
)

// RetryPolicy says how often a call is made, and how long is waited in between.
//
// Made again are calls that the service answered with 503 or 429, which means
// that the same call may succeed later; and calls for which no connection could
// be made, since nothing was sent. A call of which nobody knows whether it was
// done (the connection broke, or a proxy answered 503 or 429) is made again only
// if it can do no harm: reads, admits, keep-awakes, policies, and changes of
// engines with an [IdempotencyKey]. All else is returned at once, and so is an error that asks
// for a longer wait than MaxWait or than the context has left.
type RetryPolicy struct {
	// Attempts is how often a call is made in all; 0 and 1: once.
	Attempts int
	// MinWait is the wait after the first attempt; it doubles with each, up to
	// MaxWait, and a random part of up to a half is taken off. A longer
	// Retry-After of the service is waited for. 0: 100 ms, and 30 s.
	MinWait, MaxWait time.Duration
}

const (
	defaultMinWait = 100 * time.Millisecond
	defaultMaxWait = 30 * time.Second
)

// run calls do until it succeeds, fails for good, or may not be called again. It
// returns the last error, with the context's cause if that ended the waiting.
func (p RetryPolicy) run(ctx context.Context, repeatable bool, do func() error) error {
	wait, most := p.MinWait, p.MaxWait
	if wait <= 0 {
		wait = defaultMinWait
	}
	if most <= 0 {
		most = defaultMaxWait
	}
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || attempt >= p.Attempts || ctx.Err() != nil || !again(err, repeatable) {
			return err
		}
		pause := jittered(min(wait, most))
		var e *Error
		if errors.As(err, &e) && e.RetryAfter > pause {
			pause = e.RetryAfter
		}
		if deadline, ok := ctx.Deadline(); pause > most || ok && time.Until(deadline) < pause {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w while waiting after attempt %d: %w", context.Cause(ctx), attempt, err)
		}
		wait *= 2
	}
}

// jittered is a random time from half of d to d, so that callers that failed
// together do not come back together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// again says whether the call that failed with err may be made again.
func again(err error, repeatable bool) bool {
	var answered *Error
	if errors.As(err, &answered) {
		later := answered.Status == http.StatusServiceUnavailable || answered.Status == http.StatusTooManyRequests
		return later && (answered.Code != "" || repeatable)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	broken := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	return broken && repeatable
}
