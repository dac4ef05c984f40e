package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 500 * time.Millisecond
	// crowdedFor is how long after a refusal a link keeps no idle connections: another client
	// at this address may be unable to connect because of them.
	crowdedFor = 5 * time.Second
)

// errRefused: the store has reached its limit of connections from this address, or of
// calls.
var errRefused = errors.New("link: the store refused the call because of its limit of connections")

// send sends a request, and retries within the request's time limit while the store refuses
// it because of its limits. Any request may be retried, because a refused one was not
// carried out. A link that was refused leaves its connections to all clients of this address
// after each call, so that each of them gets its share.
func (l *Link) send(transport *http.Transport, req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		var at attempt
		sent := req.WithContext(httptrace.WithClientTrace(ctx, at.trace()))
		sent.Close = req.Close || l.crowded()
		resp, err := transport.RoundTrip(sent)
		if err == nil {
			l.circuit.Heard(resp.StatusCode < http.StatusInternalServerError)
		}
		refused := at.refused(resp, err)
		if refused {
			l.refusedAt.Store(time.Now().UnixNano())
		} else if wait > firstRetry {
			transport.CloseIdleConnections()
		}
		if !refused || req.Body != nil && req.GetBody == nil {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		l.observe(req, ResultLimited, 0)
		l.circuit.Heard(false)
		if !pause(ctx, wait/2+rand.N(wait)) {
			return nil, fmt.Errorf("%w: %w", errRefused, context.Cause(ctx))
		}
		if req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(ctx)
			req.Body = body
		}
	}
}

// crowded reports whether the store refused a call because of its limits a moment ago.
func (l *Link) crowded() bool {
	return time.Since(time.Unix(0, l.refusedAt.Load())) < crowdedFor
}

// pause waits for d, and reports whether ctx is still active afterwards.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt is what was observed while sending a request once.
type attempt struct {
	conn      atomic.Pointer[sniffed]
	handshake atomic.Bool // the store closed the connection during the TLS handshake
}

func (a *attempt) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if c, ok := info.Conn.(*sniffed); ok {
				a.conn.Store(c)
			}
		},
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { a.handshake.Store(closedByPeer(err)) },
	}
}

// refused reports whether the store did nothing because of its limits. Either it responds
// 429 to the request, or (go-connlimit) it sends 429 on a new connection before it reads
// anything and closes it; with TLS it closes it without a response. Go's client may not see
// that response, because writing its request fails first.
func (a *attempt) refused(resp *http.Response, err error) bool {
	if err == nil {
		return resp.StatusCode == http.StatusTooManyRequests
	}
	c := a.conn.Load()
	return errors.Is(err, errRefused) || c != nil && c.refused.Load() || a.handshake.Load() && closedByPeer(err)
}

func closedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Dial returns a DialContext for a transport. Its connections notice that the store refuses
// them.
func Dial(dialer *net.Dialer) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &sniffed{Conn: conn}, nil
	}
}

// sniffed is a connection that inspects the first bytes that it reads. A refusal ends it
// before Go's client sees it, because the client would log a response that comes before its
// request.
type sniffed struct {
	net.Conn
	read    bool // only used by the one goroutine that reads
	refused atomic.Bool
}

func (c *sniffed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.read {
		c.read = true
		if bytes.HasPrefix(b[:n], []byte("HTTP/1.1 429 ")) {
			c.refused.Store(true)
			return 0, errRefused
		}
	}
	return n, err
}
