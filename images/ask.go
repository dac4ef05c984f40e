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

// parse reads an image reference as Docker does: without a host it is Docker Hub's,
// without a tag it is :latest.
func parse(image string) (name.Reference, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, fmt.Errorf("images: %q is not an image reference", image)
	}
	if isLoopback(hostOf(ref.Context().RegistryStr())) { // plain HTTP is tried there
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

// isLoopback is where plain HTTP is allowed, as dockerd has it.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// asker asks registries, with the credentials of the Docker configuration.
type asker struct {
	keychain  authn.Keychain
	transport *http.Transport
	helper    chan struct{} // holds a token while credentials are looked up
}

func newAsker() *asker {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: limit}).DialContext
	t.TLSHandshakeTimeout = limit
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = 2, time.Minute
	return &asker{keychain: authn.DefaultKeychain, transport: t, helper: make(chan struct{}, 1)}
}

// head asks for the digest of a tag. An *answerError is what the registry said.
// Errors hold nothing that a server sent but its status.
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

// credentials looks up what the Docker configuration has for a repository. A
// credential helper knows of no context; one that hangs keeps the others waiting
// until their own time is over.
func (a *asker) credentials(ctx context.Context, repo name.Repository) (authn.Authenticator, error) {
	select {
	case a.helper <- struct{}{}:
	case <-ctx.Done():
		return nil, errors.New("images: a credential helper does not answer")
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
		if f.err != nil { // its text may be a helper's output
			return nil, errors.New("images: the Docker configuration, or a credential helper that it names, does not give the registry's credentials")
		}
		return f.auth, nil
	case <-ctx.Done():
		return nil, errors.New("images: a credential helper does not answer")
	}
}

// plain is an error without what a server sent, which may repeat what it was sent.
func plain(ctx context.Context, err error) error {
	var answer *transport.Error
	var network net.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("images: the registry did not answer in time: %w", ctx.Err())
	case errors.As(err, &answer):
		if answer.Temporary() {
			return fmt.Errorf("images: the registry answered %d, which may pass", answer.StatusCode)
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
	return errors.New("images: the registry cannot be reached, or does not speak as a registry does")
}

var errPlainHTTP = errors.New("images: plain HTTP is for registries on loopback addresses")

// maxBody bounds an answer; none that is of use is longer.
const maxBody = 1 << 20

// guarded lets nothing out over plain HTTP but to loopback addresses, wherever a
// name, a redirect or a token service points to.
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
