package boot

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// hedgeAfter is how long an address may not respond before it is dialled again. A SYN that
// is sent before a container's interface is up is lost, and the kernel repeats it only
// after a second.
const hedgeAfter = 50 * time.Millisecond

// hedged dials an address again while there is no connection yet, with the delay doubled
// each time. The first connection wins, so neither a lost SYN nor a long distance prevents
// reaching an engine.
type hedged struct {
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	within time.Duration // for all attempts together

	reached sync.Map // by host: when there was a connection last (time.Time)
	failing sync.Map // by host: since when there was none (time.Time)
}

type dialled struct {
	conn net.Conn
	err  error
}

// reachedLately reports whether there was a connection to the host of an address within a
// time.
func (h *hedged) reachedLately(address string, within time.Duration) bool {
	host, _, _ := net.SplitHostPort(address)
	at, known := h.reached.Load(host)
	return known && time.Since(at.(time.Time)) < within
}

// failingFor returns for how long every connection to the host of an address has failed;
// 0: the last one was made, or none was tried.
func (h *hedged) failingFor(address string) time.Duration {
	host, _, _ := net.SplitHostPort(address)
	since, known := h.failing.Load(host)
	if !known {
		return 0
	}
	return time.Since(since.(time.Time))
}

// note records the result of a connection.
func (h *hedged) note(address string, err error) {
	host, _, splits := net.SplitHostPort(address)
	switch {
	case splits != nil:
	case err == nil:
		h.reached.Store(host, time.Now())
		h.failing.Delete(host)
	case noConnection(err):
		h.failing.LoadOrStore(host, time.Now())
	}
}

// noConnection reports whether the other side accepted no connection. Other errors, such as
// too many open files, show nothing about it.
func noConnection(err error) bool {
	var timeout net.Error
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// DialContext returns the first connection, or the first error: an address that refuses one
// connection refuses all.
func (h *hedged) DialContext(parent context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(parent, h.within)
	var turns sync.WaitGroup
	defer turns.Wait()
	defer cancel()
	first := make(chan dialled)
	turn := func() {
		conn, err := h.dial(ctx, network, address)
		select {
		case first <- dialled{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	for wait := hedgeAfter; ; wait *= 2 {
		turns.Go(turn)
		again := time.NewTimer(wait)
		select {
		case d := <-first:
			again.Stop()
			h.note(address, d.err)
			return d.conn, d.err
		case <-ctx.Done():
			again.Stop()
			if parent.Err() == nil { // a caller with less time shows nothing
				h.note(address, ctx.Err())
			}
			return nil, ctx.Err()
		case <-again.C:
		}
	}
}
