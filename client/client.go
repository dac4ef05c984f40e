// Package client calls the service's REST API (docs/openapi.yaml): one method per
// endpoint, and [Client.Do] for what has none.
//
// An answer that is not 2xx is an [*Error]; compare it by its code:
//
//	if errors.Is(err, client.ErrEngineNotFound) { ... }
//
// A call is made once, unless [Client.Retry] says otherwise.
package client

import (
	"context"
	"net/http"
	"net/url"
)

// Client calls one service. It is safe for use by several goroutines, as long as
// its fields do not change.
type Client struct {
	BaseURL string // for example http://127.0.0.1:8000
	// PlatformKey is sent with the calls of products, AdminKey with those of the
	// admin; an empty one is not sent. Do, which knows no endpoints, sends both.
	PlatformKey string
	AdminKey    string
	// HTTP is http.DefaultClient when nil. Provisions can take as long as the
	// service's boot timeout: bound calls by their context. Redirects are not
	// followed, whatever it says: the service has none, and the keys would go along.
	HTTP *http.Client
	// Retry says which calls are made again; the zero value: none.
	Retry RetryPolicy
}

// keys says which of the client's keys a call carries.
type keys int

const (
	noKey    keys = 0
	platform keys = 1 << iota
	admin
	bothKeys = platform | admin
)

type requestID struct{}

// WithRequestID makes calls send an id as X-Request-Id: the service puts it on
// its answer and on every log line and audit row that the call causes. It takes
// ids of 1 to 128 characters A-Z a-z 0-9 . _ : / + = - and replaces others.
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
