// Package client is a client of the service's REST API (docs/openapi.yaml), with one method
// per endpoint, and [Client.Do] for all others.
//
// A response with a status other than 2xx is an [*Error]. Compare it by its code:
//
//	if errors.Is(err, client.ErrEngineNotFound) { ... }
//
// A call is not retried, unless [Client.Retry] is set.
package client

import (
	"context"
	"net/http"
	"net/url"
)

// Client calls one service. It is safe for concurrent use as long as its fields do not
// change.
type Client struct {
	BaseURL string // for example http://127.0.0.1:8000
	// PlatformKey is sent with calls of products, AdminKey with calls of the admin. An
	// empty key is not sent. Do sends both.
	PlatformKey string
	AdminKey    string
	// HTTP is the HTTP client, for example of [TLS.HTTPClient]; nil: http.DefaultClient. Provisions can take as long as the
	// service's boot timeout, so use contexts to limit calls. Redirects are never followed:
	// the service has none, and the keys would be sent along.
	HTTP *http.Client
	// Retry sets which calls are retried; the zero value: none.
	Retry RetryPolicy
}

// keys selects which of the client's keys a call sends.
type keys int

const (
	noKey    keys = 0
	platform keys = 1 << iota
	admin
	bothKeys = platform | admin
)

type requestID struct{}

// WithRequestID makes calls send an id as X-Request-Id. The service puts it into its
// response, and into every log line and audit row of the call. It accepts ids of 1 to 128
// characters A-Z a-z 0-9 . _ : / + = - and replaces others.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestID{}, id)
}

func enginePath(userID string) string { return "/engines/" + url.PathEscape(userID) }

func productPath(productID string) string { return "/products/" + url.PathEscape(productID) }

// withQuery appends the parameters that are set.
func withQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}
