package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// parse reads an image reference as Docker does: the default host is Docker Hub, and the
// default tag is :latest.
func parse(image string) (name.Reference, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, fmt.Errorf("images: %q is not an image reference", image)
	}
	if isLoopback(hostOf(ref.Context().RegistryStr())) { // plain HTTP is allowed there
		ref, err = name.ParseReference(image, name.Insecure)
	}
	return ref, err
}

func hostOf(registry string) string {
	if host, _, err := net.SplitHostPort(registry); err == nil {
		return host
	}
	return strings.Trim(registry, "[]")
}

// isLoopback reports whether plain HTTP is allowed to a host; dockerd has the same rule.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// asker sends requests to registries, with the credentials of the Docker configuration.
type asker struct {
	keychain  authn.Keychain
	transport *http.Transport
	helper    chan struct{} // contains a token while credentials are read
}

func newAsker() *asker {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: limit}).DialContext
	t.TLSHandshakeTimeout = limit
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = 2, time.Minute
	return &asker{keychain: authn.DefaultKeychain, transport: t, helper: make(chan struct{}, 1)}
}

// head requests the digest of a tag. An *answerError is the registry's response. Errors
// contain nothing that a server sent except its status.
func (a *asker) head(ctx context.Context, ref name.Reference) (string, error) {
	auth, err := a.credentials(ctx, ref.Context())
	if err != nil {
		return "", err
	}
	return head(ctx, guarded{a.transport}, auth, ref)
}

func head(ctx context.Context, t http.RoundTripper, auth authn.Authenticator, ref name.Reference) (string, error) {
	d, err := remote.Head(ref, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(t), remote.WithUserAgent("orch"),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes())
	if err != nil {
		return "", plain(ctx, err)
	}
	return d.Digest.String(), nil
}

// credentials reads the credentials for a repository from the Docker configuration. A
// credential helper accepts no context: while one hangs, other calls wait until their own
// time limit.
func (a *asker) credentials(ctx context.Context, repo name.Repository) (authn.Authenticator, error) {
	select {
	case a.helper <- struct{}{}:
	case <-ctx.Done():
		return nil, errors.New("images: a credential helper does not respond")
	}
	type found struct {
		auth authn.Authenticator
		err  error
	}
	got := make(chan found, 1)
	go func() {
		defer func() { <-a.helper }()
		auth, err := authn.Resolve(ctx, a.keychain, repo)
		got <- found{auth, err}
	}()
	select {
	case f := <-got:
		if f.err != nil { // its text may contain a helper's output
			return nil, errors.New("images: cannot get the registry's credentials from the Docker configuration or its credential helper")
		}
		return f.auth, nil
	case <-ctx.Done():
		return nil, errors.New("images: a credential helper does not respond")
	}
}

// plain returns an error without what a server sent, which may repeat a secret.
func plain(ctx context.Context, err error) error {
	var answer *transport.Error
	var network net.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("images: the registry did not respond in time: %w", ctx.Err())
	case errors.As(err, &answer):
		if answer.Temporary() {
			return fmt.Errorf("images: the registry responded with %d, which may be temporary", answer.StatusCode)
		}
		return &answerError{Status: answer.StatusCode}
	case errors.Is(err, errPlainHTTP):
		return errPlainHTTP
	case errors.As(err, &network):
		var op *net.OpError
		if errors.As(err, &op) {
			return fmt.Errorf("images: the registry cannot be reached: %w", op)
		}
	}
	return errors.New("images: the registry cannot be reached, or does not follow the registry protocol")
}

var errPlainHTTP = errors.New("images: plain HTTP is only allowed to registries on loopback addresses")

// maxBody limits the size of a response, in bytes; no useful one is larger.
const maxBody = 1 << 20

// guarded refuses plain HTTP to all but loopback addresses, including addresses that a
// name, a redirect or a token service leads to.
type guarded struct{ next http.RoundTripper }

func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Hostname()) {
		return nil, errPlainHTTP
	}
	answer, err := g.next.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxBody), answer.Body}
	}
	return answer, err
}
