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
	// minSilence is the minimum duration of a call whose timeout counts as an unresponsive
	// store, because some calls have a shorter timeout on purpose. It is below the shortest
	// timeout of an availability probe (2 s).
	minSilence = 1500 * time.Millisecond
	// probeEvery is the interval of pings to a store that does not respond, and probeWithin
	// limits one ping: at most probeConns are in progress.
	probeEvery  = 500 * time.Millisecond
	probeWithin = probeConns * probeEvery
)

// ErrAway means that the store is not responding, so no request was sent.
var ErrAway = errors.New("link: the store does not respond")

type failFastKey struct{}

// FailFast marks a call whose caller waits and can retry: it fails at once while the store
// does not respond.
func FailFast(ctx context.Context) context.Context {
	return context.WithValue(ctx, failFastKey{}, true)
}

type probeKey struct{}

func probing(ctx context.Context) bool { return ctx.Value(probeKey{}) != nil }

// silent reports whether an error means that a call got no response in time.
func silent(ctx context.Context, err error) bool {
	var dial *net.OpError
	return errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout()
}

// Circuit tracks whether a store responds. It opens when a call got no response in time and
// no other call got one since that call began. It closes with the next response. A nil
// Circuit never opens.
type Circuit struct {
	ping          func(context.Context) error
	changed       func(away bool)
	every, within time.Duration

	base   context.Context // of the pings; ends with Close
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu       sync.Mutex
	answered time.Time     // time of the last response of any kind
	back     chan struct{} // closed when the store responds again; nil: it does respond
	ended    bool
}

// NewCircuit returns the circuit of a store. While it is open, ping is called at the
// interval every, with the time limit within. changed is called when it opens and when it
// closes. Close ends it.
func NewCircuit(ping func(context.Context) error, changed func(away bool), every, within time.Duration) *Circuit {
	c := &Circuit{ping: ping, changed: changed, every: every, within: within}
	c.base, c.cancel = context.WithCancel(context.WithValue(context.Background(), probeKey{}, true))
	return c
}

// Pass returns nil if a call may be sent; otherwise ErrAway or the context's error.
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

// Heard records a response. A bad one (5xx) shows that the store responds, but not that it
// works again.
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

// Silent records that a call, which began at that time, got no response. If this opens the
// circuit, the store is pinged until it responds.
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

// Close ends the pings, and prevents the circuit from opening.
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

// watch pings the store until it responds or the circuit is closed.
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
