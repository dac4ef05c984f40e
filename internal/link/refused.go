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
)

// errRefused: the store has as many connections from this address, or calls, as it
// takes.
var errRefused = errors.New("link: the store refused the call for its limit of connections")

// send sends a request, again and again within its own time limit while the store
// refuses it for its limits: nothing was done then, whatever the request is.
func (l *Link) send(transport *http.Transport, req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		var at attempt
		resp, err := transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, at.trace())))
		if err == nil {
			l.circuit.Heard(resp.StatusCode < http.StatusInternalServerError)
		}
		if !at.refused(resp, err) || req.Body != nil && req.GetBody == nil {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
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

// pause waits for d and says whether ctx is still alive then.
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

// attempt is what was seen of one sending of a request.
type attempt struct {
	conn      atomic.Pointer[sniffed]
	handshake atomic.Bool // the store closed the connection before TLS was up
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

// refused says whether the store did nothing for its limits: it answers 429, or, of a
// connection that is one too many, answers 429 before it has read anything and closes
// it (go-connlimit), with TLS without a word. Go's client does not always get to that
// answer: it may notice first that its request cannot be written.
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

// Dial is a transport's DialContext by a dialer, whose connections notice that the
// store refuses them.
func Dial(dialer *net.Dialer) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &sniffed{Conn: conn}, nil
	}
}

// sniffed is a connection that looks at the first that it reads. A refusal ends it:
// Go's client logs an answer that comes before its request, which helps nobody.
type sniffed struct {
	net.Conn
	read    bool // by the one goroutine that reads
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
