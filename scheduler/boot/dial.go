package boot

import (
	"context"
	"net"
	"sync"
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

// DialContext returns the first connection, or the first error: an address that refuses one
// connection refuses all.
func (h *hedged) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.within)
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
			if host, _, err := net.SplitHostPort(address); err == nil && d.err == nil {
				h.reached.Store(host, time.Now())
			}
			return d.conn, d.err
		case <-ctx.Done():
			again.Stop()
			return nil, ctx.Err()
		case <-again.C:
		}
	}
}
