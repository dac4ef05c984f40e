// Package client calls the service's REST API.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Client calls one service. Its zero keys are simply not sent.
type Client struct {
	BaseURL     string
	PlatformKey string
	AdminKey    string
	// HTTP is http.DefaultClient when nil. Provisions can take as long as the
	// service's boot timeout: bound calls by their context.
	HTTP *http.Client
}

// Error is an answer that is not 2xx.
type Error struct {
	Status     int
	Code       string
	Message    string
	RequestID  string
	RetryAfter time.Duration // zero: the answer named none
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%d): %s", e.Code, e.Status, e.Message) }

// Engine is an engine as the service tells it. Calls fill what their answer has.
type Engine struct {
	EngineID      string     `json:"engine_id"`
	UserID        string     `json:"user_id"`
	Status        string     `json:"status"`
	URL           string     `json:"url"`
	APIKey        string     `json:"api_key"`
	EngineVersion string     `json:"engine_version"`
	CreatedAt     time.Time  `json:"created_at"`
	LastHealthAt  *time.Time `json:"last_health_at"`
	Reason        string     `json:"reason"`
}

// Product is a product as its registration tells it.
type Product struct {
	ProductID      string `json:"product_id"`
	Slug           string `json:"slug"`
	PlatformAPIKey string `json:"platform_api_key"`
}

// RegisterProduct makes a product; policy is marshalled as it is.
func (c *Client) RegisterProduct(ctx context.Context, slug, displayName string, policy any) (*Product, error) {
	body := map[string]any{"slug": slug, "display_name": displayName}
	if policy != nil {
		body["policy"] = policy
	}
	p := new(Product)
	return p, c.Do(ctx, http.MethodPost, "/products/register", body, p)
}

// Provision makes a user an engine; an empty version is the default.
func (c *Client) Provision(ctx context.Context, userID, version string) (*Engine, error) {
	if !utf8.ValidString(userID) {
		// It would be sent with replacement characters: another user's.
		return nil, errors.New("the user_id is not valid UTF-8")
	}
	body := map[string]any{"user_id": userID}
	if version != "" {
		body["engine_version"] = version
	}
	e := new(Engine)
	return e, c.Do(ctx, http.MethodPost, "/engines/provision", body, e)
}

// Engine reads a user's engine.
func (c *Client) Engine(ctx context.Context, userID string) (*Engine, error) {
	e := new(Engine)
	return e, c.Do(ctx, http.MethodGet, enginePath(userID), nil, e)
}

// Start runs a user's engine.
func (c *Client) Start(ctx context.Context, userID string) (*Engine, error) {
	e := new(Engine)
	return e, c.Do(ctx, http.MethodPost, enginePath(userID)+"/start", nil, e)
}

// Stop ends the process of a user's engine.
func (c *Client) Stop(ctx context.Context, userID string) (*Engine, error) {
	e := new(Engine)
	return e, c.Do(ctx, http.MethodPost, enginePath(userID)+"/stop", nil, e)
}

// RotateKey gives a user's engine a new key and returns it.
func (c *Client) RotateKey(ctx context.Context, userID string) (string, error) {
	var answer struct {
		NewAPIKey string `json:"new_api_key"`
	}
	err := c.Do(ctx, http.MethodPost, enginePath(userID)+"/rotate-key", nil, &answer)
	return answer.NewAPIKey, err
}

// Destroy removes a user's engine with its brain and key.
func (c *Client) Destroy(ctx context.Context, userID string) (*Engine, error) {
	e := new(Engine)
	return e, c.Do(ctx, http.MethodDelete, enginePath(userID), nil, e)
}

// Ready returns nil when the service says that it can work.
func (c *Client) Ready(ctx context.Context) error {
	return c.Do(ctx, http.MethodGet, "/ready", nil, nil)
}

func enginePath(userID string) string { return "/engines/" + url.PathEscape(userID) }

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// Do makes one call. An answer that is not 2xx is an *Error.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.BaseURL, "/")+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.PlatformKey != "" {
		req.Header.Set("X-Platform-Key", c.PlatformKey)
	}
	if c.AdminKey != "" {
		req.Header.Set("X-Admin-Key", c.AdminKey)
	}
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return errorOf(resp, answer)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode the answer: %w", err)
	}
	return nil
}

func errorOf(resp *http.Response, answer []byte) error {
	var body struct {
		Error struct {
			Code      string `json:"code"`
			Message   string `json:"message"`
			RequestID string `json:"request_id"`
		} `json:"error"`
	}
	_ = json.Unmarshal(answer, &body) // not ours: then the status must do
	e := &Error{Status: resp.StatusCode, Code: body.Error.Code, Message: body.Error.Message, RequestID: body.Error.RequestID}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
