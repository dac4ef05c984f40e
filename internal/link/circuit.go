package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// minSilence is how long a call is under way at least before its time limit says
	// something of the store: some calls have a shorter one on purpose. It is below the
	// shortest with which the store is asked whether it is there (2 s).
	minSilence = 1500 * time.Millisecond
	// probeEvery is how often a store that does not answer is asked, and probeWithin
	// bounds one question: no more than probeConns are under way.
	probeEvery  = 500 * time.Millisecond
	probeWithin = probeConns * probeEvery
)

// ErrAway says that the store does not answer, so nothing was sent.
var ErrAway = errors.New("link: the store does not answer")

type failFastKey struct{}

// FailFast is for a call that somebody waits for who can make it again: it fails at
// once while the store does not answer.
func FailFast(ctx context.Context) context.Context {
	return context.WithValue(ctx, failFastKey{}, true)
}

type probeKey struct{}

func probing(ctx context.Context) bool { return ctx.Value(probeKey{}) != nil }

// silent says whether an error means that a call had no answer in its time.
func silent(ctx context.Context, err error) bool {
	var dial *net.OpError
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout()
}

// Circuit knows whether a store answers. It is opened by a call that had no answer in
// its time, where no other call had one since that began, and closed by the next
// answer. Nil never opens.
type Circuit struct {
	ping          func(context.Context) error
	changed       func(away bool)
	every, within time.Duration

	base   context.Context // of the questions; ends with Close
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu       sync.Mutex
	answered time.Time     // the last answer of any kind
	back     chan struct{} // closed when the store answers again; nil: it does
	ended    bool
}

// NewCircuit returns the circuit of a store. While it is open the store is asked by ping
// as often as every says, within that time limit: this many questions fit. changed is
// told when it opens and when it closes. Close ends it.
func NewCircuit(ping func(context.Context) error, changed func(away bool), every, within time.Duration) *Circuit {
	c := &Circuit{ping: ping, changed: changed, every: every, within: within}
	c.base, c.cancel = context.WithCancel(context.WithValue(context.Background(), probeKey{}, true))
	return c
}

// Pass returns nil when a call may be sent, ErrAway or the context's error when not.
func (c *Circuit) Pass(ctx context.Context) error {
	if c == nil {
		return nil
	}
	for {
		c.mu.Lock()
		back := c.back
		c.mu.Unlock()
		if back == nil {
			return nil
		}
		if ctx.Value(failFastKey{}) != nil {
			return ErrAway
		}
		select {
		case <-back:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrAway, context.Cause(ctx))
		}
	}
}

// Heard notes an answer. One that says that the store cannot do its work (5xx) shows
// that it is there, but not that it is again what it was.
func (c *Circuit) Heard(good bool) {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.answered = time.Now()
	closed := good && c.back != nil && !c.ended
	if closed {
		close(c.back)
		c.back = nil
	}
	c.mu.Unlock()
	if closed {
		c.changed(false)
	}
}

// Silent notes that a call which began at a moment had no answer. Where that means that
// the store does not answer, it is asked until it does.
func (c *Circuit) Silent(began time.Time) {
	if c == nil {
		return
	}
	c.mu.Lock()
	opened := c.back == nil && !c.ended && c.answered.Before(began)
	if opened {
		back := make(chan struct{})
		c.back = back
		c.asking.Go(func() { c.watch(back) })
	}
	c.mu.Unlock()
	if opened {
		c.changed(true)
	}
}

// Close ends the questions, and keeps the circuit from being opened.
func (c *Circuit) Close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.ended = true
	if c.back != nil {
		close(c.back)
		c.back = nil
	}
	c.mu.Unlock()
	c.cancel()
	c.asking.Wait()
}

// watch asks the store until it is back, or the circuit is at its end.
func (c *Circuit) watch(back <-chan struct{}) {
	base, cancel := context.WithCancel(c.base)
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(base, c.within)
			defer cancel()
			if c.ping(ctx) == nil {
				c.Heard(true)
			}
		})
		select {
		case <-tick.C:
		case <-back:
			return
		case <-base.Done():
			return
		}
	}
}
