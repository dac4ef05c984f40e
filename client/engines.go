package client

import (
	"context"
	"errors"
	"math"
	"net/http"
	"time"
	"unicode/utf8"
)

// The states of an engine.
const (
	Provisioning = "provisioning"
	Running      = "running"
	Sleeping     = "sleeping"
	Stopped      = "stopped"
	Failed       = "failed"
	Destroying   = "destroying"
)

// States lists all states.
var States = []string{Provisioning, Running, Sleeping, Stopped, Failed, Destroying}

// Engine is an engine as the service returns it. A field that the response does not have is
// zero here, and is omitted when marshalled.
type Engine struct {
	EngineID string `json:"engine_id,omitempty"`
	UserID   string `json:"user_id,omitempty"`
	// Status is one of the states, or "destroyed" in the result of Destroy.
	Status        string     `json:"status"`
	URL           string     `json:"url,omitempty"`
	APIKey        string     `json:"api_key,omitempty"`
	EngineVersion string     `json:"engine_version,omitempty"` // its image
	ImageDigest   string     `json:"image_digest,omitempty"`   // the digest that is started, even if the tag has moved since; empty: not pinned
	CreatedAt     time.Time  `json:"created_at,omitzero"`
	LastHealthAt  *time.Time `json:"last_health_at,omitempty"`
	Reason        string     `json:"reason,omitempty"` // why the engine failed, or runs but cannot serve: a stable identifier

	// Only in responses to the admin. NodeID is empty before the engine has a node.
	ProductID   string `json:"product_id,omitempty"`
	ProductSlug string `json:"product_slug,omitempty"`
	NodeID      string `json:"node_id,omitempty"`

	Operation     *Operation     `json:"operation,omitempty"`      // in Client.Engine and UnderWay: the operation in progress
	LastOperation *LastOperation `json:"last_operation,omitempty"` // the last finished operation
}

// errUserID is for a user_id in a body that would be encoded with replacement characters,
// which name another user.
var errUserID = errors.New("the user_id must be valid UTF-8")

// ChangeOption is an option of a change of an engine.
type ChangeOption func(*call)

// IdempotencyKey makes a change the same call as every other one with this key and user
// (and version) within 24 hours: it returns the result of the first one that succeeded.
// Such a change may be retried even if it is unknown whether it was carried out.
func IdempotencyKey(key string) ChangeOption {
	return func(c *call) {
		c.repeatable = true
		c.header = http.Header{"Idempotency-Key": {key}}
	}
}

// Provision creates an engine for a user, and waits until it is usable. An empty version
// means the default.
func (c *Client) Provision(ctx context.Context, userID, version string, options ...ChangeOption) (*Engine, error) {
	if !utf8.ValidString(userID) {
		return nil, errUserID
	}
	e := new(Engine)
	what := call{method: http.MethodPost, path: "/engines/provision", user: userID, keys: platform, out: e, in: struct {
		UserID        string `json:"user_id"`
		EngineVersion string `json:"engine_version,omitempty"`
	}{userID, version}}
	return e, c.change(ctx, what, options)
}

// change makes a change of an engine.
func (c *Client) change(ctx context.Context, what call, options []ChangeOption) error {
	for _, o := range options {
		o(&what)
	}
	return c.do(ctx, what)
}

// Engine reads a user's engine, with its key.
func (c *Client) Engine(ctx context.Context, userID string) (*Engine, error) {
	e := new(Engine)
	return e, c.do(ctx, call{method: http.MethodGet, path: enginePath(userID), user: userID, keys: platform, out: e, repeatable: true})
}

// Start starts a user's engine, and waits until it is usable.
func (c *Client) Start(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/start", user: userID, keys: platform, out: e}, options)
}

// Stop stops a user's engine, and waits until its process has ended.
func (c *Client) Stop(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/stop", user: userID, keys: platform, out: e}, options)
}

// RotateKey replaces the key of a user's engine, and returns the new key.
func (c *Client) RotateKey(ctx context.Context, userID string, options ...ChangeOption) (string, error) {
	var answer struct {
		NewAPIKey string `json:"new_api_key"`
	}
	err := c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/rotate-key", user: userID, keys: platform, out: &answer}, options)
	return answer.NewAPIKey, err
}

// KeepAwake prevents a user's running engine from being put to sleep for 1 second to 1
// hour, and returns until when. Fractions of a second are rounded up.
func (c *Client) KeepAwake(ctx context.Context, userID string, d time.Duration) (time.Time, error) {
	var answer struct {
		Until time.Time `json:"keep_awake_until"`
	}
	err := c.do(ctx, call{
		method: http.MethodPost, path: enginePath(userID) + "/keep-awake", user: userID, keys: platform, repeatable: true, out: &answer,
		in: struct {
			Seconds int `json:"seconds"`
		}{wholeSeconds(d)},
	})
	return answer.Until, err
}

// Destroy destroys a user's engine, with its brain and key.
func (c *Client) Destroy(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodDelete, path: enginePath(userID), user: userID, keys: platform, out: e}, options)
}

func wholeSeconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }
