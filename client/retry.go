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

// RetryPolicy sets how often a call is made, and the wait in between.
//
// A call is retried if the service returned 503 or 429, which means that the same call may
// succeed later, or if no connection could be made, so that nothing was sent. If
// it is unknown whether a call was carried out (the connection broke, or a proxy returned
// 503 or 429), it is retried only if that is harmless: reads, admits, keep-awakes,
// policies, and changes of engines with an [IdempotencyKey]. All other errors are returned
// at once, as are errors that require a longer wait than MaxWait or than the context
// allows.
type RetryPolicy struct {
	// Attempts is the maximum number of attempts; 0 and 1: one.
	Attempts int
	// MinWait is the wait after the first attempt. It doubles with each attempt up to
	// MaxWait, and is shortened by a random part of up to a half. A longer Retry-After of
	// the service takes precedence. 0: 100 ms for MinWait, 30 s for MaxWait.
	MinWait, MaxWait time.Duration
}

const (
	defaultMinWait = 100 * time.Millisecond
	defaultMaxWait = 30 * time.Second
)

// run calls do until it succeeds, fails permanently, or may not be retried. It returns the
// last error, with the context's cause if that ended the wait.
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

// jittered returns a random time from half of d to d, so that callers that failed together
// do not retry together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// again reports whether a call that failed with err may be retried.
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
