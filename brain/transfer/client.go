// Package transfer moves the object of a snapshot between a node and a store by URLs that
// somebody else has signed: it has no credentials, and knows no store. A URL with the scheme
// file names a file of this machine.
package transfer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/internal/pause"
)

// Options of a Client. With the zero value a store that is away is tried twice, and a
// connection without progress is kept.
type Options struct {
	CA             string        // in PEM; empty: the authorities of the system
	BytesPerSecond int64         // 0: no limit
	GiveUp         time.Duration // for how long a store that is away is tried without a success
	Stall          time.Duration // after which time without progress a connection is given up
}

// Client sends and fetches. Its errors have the kinds Away, Refused, OverQuota, NotFound and
// Interrupted of package brain, and contain no URL.
type Client struct {
	opts  Options
	http  *http.Client
	limit *rate.Limiter // nil: none
}

const (
	// burst is how much may be read at once under a limit.
	burst = 64 << 10
	// The wait between two attempts doubles from shortest to longest, with jitter.
	shortest, longest = 200 * time.Millisecond, 20 * time.Second
)

// New returns a client. The error has the kind BadOrder: the authority is none.
func New(opts Options) (*Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSHandshakeTimeout = opts.Stall
	// One connection at a time; HTTP/2 would gain nothing.
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	if opts.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(opts.CA)) {
			return nil, brain.Errorf(brain.BadOrder, "ca has no certificate")
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	c := &Client{opts: opts, http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a signature is for one URL
	}}}
	if opts.BytesPerSecond > 0 {
		c.limit = rate.NewLimiter(rate.Limit(opts.BytesPerSecond), burst)
	}
	return c, nil
}

// Close closes the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// retry calls do until it succeeds, fails with another kind than Away, or has failed for
// GiveUp without progress. do reports whether it made progress. If ctx ends, the error has
// the kind Interrupted.
func (c *Client) retry(ctx context.Context, do func() (progress bool, err error)) error {
	wait, since := shortest, time.Time{} // the first of the failures
	for {
		progress, err := do()
		if err == nil || brain.KindOf(err) != brain.Away {
			return err
		}
		if ctx.Err() != nil { // the connection may have been lost at the same time
			return interrupted(ctx)
		}
		if progress || since.IsZero() {
			wait, since = shortest, time.Now()
		}
		if time.Since(since) > c.opts.GiveUp {
			return err
		}
		if !pause.For(ctx, wait/2+rand.N(wait)) {
			return interrupted(ctx)
		}
		wait = min(2*wait, longest)
	}
}

func interrupted(ctx context.Context) error {
	return brain.Errorf(brain.Interrupted, "the transfer was stopped: %w", ctx.Err())
}

// watched gives a context that ends when progress was not called for the time Stall.
func (c *Client) watched(ctx context.Context) (_ context.Context, progress, stop func()) {
	if c.opts.Stall <= 0 {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, func() {}, cancel
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.opts.Stall, func() { cancel(brain.Errorf(brain.Away, "the store made no progress for %s", c.opts.Stall)) })
	return ctx, func() { timer.Reset(c.opts.Stall) }, func() { timer.Stop(); cancel(nil) }
}

// unanswered is brain.Unanswered with the reason why a watched context ended.
func unanswered(ctx context.Context, err error, what string) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return brain.Unanswered(cause, what)
	}
	return brain.Unanswered(err, what)
}

// allow waits until n bytes may be moved.
func (c *Client) allow(ctx context.Context, n int) error {
	if c.limit == nil {
		return nil
	}
	return c.limit.WaitN(ctx, n)
}

// refused reads what a store says about a request that it did not carry out.
func refused(r *http.Response, what string) error {
	var text struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
	}
	_ = xml.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&text)
	return brain.Response(r.StatusCode, text.Code, what)
}
