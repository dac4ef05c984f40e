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

// ErrAway: the store does not answer, so nothing was sent.
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

// circuit knows whether a store answers. It is opened by a call that had no answer in
// its time, where no other call had one since that began, and closed by the next
// answer.
type circuit struct {
	ping    func(context.Context) error
	changed func(away bool)

	mu       sync.Mutex
	answered time.Time     // the last answer of any kind
	back     chan struct{} // closed when the store answers again; nil: it does
	ended    bool
}

// pass returns nil when a call may be sent, ErrAway or the context's error when not.
func (c *circuit) pass(ctx context.Context) error {
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

// heard notes an answer. One that says that the store cannot do its work (5xx) shows
// that it is there, but not that it is again what it was.
func (c *circuit) heard(good bool) {
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

// open notes that a call which began at a moment had no answer. Where that means that
// the store does not answer, watch is started, which is to ask it until it does.
func (c *circuit) open(began time.Time, watch func(back <-chan struct{})) {
	c.mu.Lock()
	opened := c.ping != nil && c.back == nil && !c.ended && c.answered.Before(began)
	if opened {
		c.back = make(chan struct{})
		watch(c.back)
	}
	c.mu.Unlock()
	if opened {
		c.changed(true)
	}
}

// end keeps the circuit from being opened.
func (c *circuit) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.back != nil {
		close(c.back)
		c.back = nil
	}
}

// watch asks the store until it is back, or the link is closed.
func (l *Link) watch(back <-chan struct{}) {
	base, cancel := context.WithCancel(context.WithValue(l.base, probeKey{}, true))
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(base, probeWithin)
			defer cancel()
			if l.circuit.ping(ctx) == nil {
				l.circuit.heard(true)
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
