package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswer limits how much of a response is read, in bytes.
const maxAnswer = 16 << 20

// call is one call of the API.
type call struct {
	method, path string
	user         string // the user whose engine it concerns; empty: none
	keys         keys
	in           any // marshalled as the body; nil: none
	out          any // the response is decoded into it; nil: the response is not read
	// repeatable: repeating the call has no further effect, so it may be retried even if it
	// is unknown whether it was carried out.
	repeatable bool
	header     http.Header       // more headers to send
	answered   func(http.Header) // gets the headers of a 2xx response
	accepts    int               // a status other than 2xx that is not an error either
}

// Do makes a call for which this package has no method, with both keys. A response with a
// status other than 2xx is an [*Error].
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	return c.do(ctx, call{method: method, path: path, keys: bothKeys, in: in, out: out, repeatable: method == http.MethodGet})
}

// get makes a call that only reads.
func (c *Client) get(ctx context.Context, k keys, path string, out any) error {
	return c.do(ctx, call{method: http.MethodGet, path: path, keys: k, out: out, repeatable: true})
}

// do makes a call, and retries it according to the policy.
func (c *Client) do(ctx context.Context, what call) error {
	var body []byte
	if what.in != nil {
		var err error
		if body, err = json.Marshal(what.in); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	return c.Retry.run(ctx, what.repeatable, func() error { return c.once(ctx, what, body) })
}

func (c *Client) once(ctx context.Context, what call, body []byte) error {
	req, err := c.request(ctx, what, body)
	if err != nil {
		return err
	}
	resp, err := c.http().Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the response: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		failed := errorOf(resp, answer)
		if resp.StatusCode != what.accepts || failed.Code != "" || json.Unmarshal(answer, what.out) != nil {
			return failed
		}
	}
	if what.method != http.MethodGet && resp.StatusCode == http.StatusAccepted && resp.Header.Get("Location") != "" {
		begun := &UnderWay{new(Engine)}
		if err := json.Unmarshal(answer, begun.Engine); err != nil {
			return fmt.Errorf("decode the response: %w", err)
		}
		return begun
	}
	if what.answered != nil {
		what.answered(resp.Header)
	}
	if what.out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, what.out); err != nil {
		return fmt.Errorf("decode the response: %w", err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, what call, body []byte) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, what.method, strings.TrimSuffix(c.BaseURL, "/")+what.path, r)
	if err != nil {
		return nil, err
	}
	for name, values := range what.header {
		req.Header[name] = values
	}
	set := func(name, value string) {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if body != nil {
		set("Content-Type", "application/json")
	}
	if what.keys&platform != 0 {
		set("X-Platform-Key", c.PlatformKey)
	}
	if what.keys&admin != 0 {
		set("X-Admin-Key", c.AdminKey)
	}
	// Proxies may rewrite the path, but not this header; the service compares the two.
	set("X-User-Id", url.PathEscape(what.user))
	if what.user != "" && what.method != http.MethodGet {
		prefer, _ := ctx.Value(preferAsync{}).(string)
		set("Prefer", prefer)
	}
	id, _ := ctx.Value(requestID{}).(string)
	set("X-Request-Id", id)
	return req, nil
}

// http returns the HTTP client, with redirects disabled.
func (c *Client) http() *http.Client {
	h := http.DefaultClient
	if c.HTTP != nil {
		h = c.HTTP
	}
	direct := *h
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &direct
}
