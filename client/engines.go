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

// States are all of them.
var States = []string{Provisioning, Running, Sleeping, Stopped, Failed, Destroying}

// Engine is an engine as the service tells it. Calls fill what their answer has;
// what is null or absent there is zero here, and left out when it is marshalled.
type Engine struct {
	EngineID string `json:"engine_id,omitempty"`
	UserID   string `json:"user_id,omitempty"`
	// Status is one of the states; "destroyed" in the answer to Destroy.
	Status        string     `json:"status"`
	URL           string     `json:"url,omitempty"`
	APIKey        string     `json:"api_key,omitempty"`
	EngineVersion string     `json:"engine_version,omitempty"` // its image
	ImageDigest   string     `json:"image_digest,omitempty"`   // what is started, whatever its tag means by now; empty: it is not pinned
	CreatedAt     time.Time  `json:"created_at,omitzero"`
	LastHealthAt  *time.Time `json:"last_health_at,omitempty"`
	Reason        string     `json:"reason,omitempty"`     // why it is failed, or runs and cannot serve: a stable word
	ProductID     string     `json:"product_id,omitempty"` // in answers to the admin alone

	Operation     *Operation     `json:"operation,omitempty"`      // of Client.Engine and UnderWay: what is done with it now
	LastOperation *LastOperation `json:"last_operation,omitempty"` // and what ended last
}

// ChangeOption is more about a change of an engine.
type ChangeOption func(*call)

// IdempotencyKey makes a change the same call as every other with this key and user
// (and version) within 24 hours: it gets the answer of the first that succeeded. So it
// may be made again when nobody knows whether it was done.
func IdempotencyKey(key string) ChangeOption {
	return func(c *call) {
		c.repeatable = true
		c.header = http.Header{"Idempotency-Key": {key}}
	}
}

// Provision makes a user an engine and waits until it is usable; an empty
// version is the default.
func (c *Client) Provision(ctx context.Context, userID, version string, options ...ChangeOption) (*Engine, error) {
	if !utf8.ValidString(userID) {
		// It would be sent with replacement characters: another user's.
		return nil, errors.New("the user_id is not valid UTF-8")
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

// Start runs a user's engine and waits until it is usable.
func (c *Client) Start(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/start", user: userID, keys: platform, out: e}, options)
}

// Stop ends the process of a user's engine and waits until it is gone.
func (c *Client) Stop(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/stop", user: userID, keys: platform, out: e}, options)
}

// RotateKey gives a user's engine a new key and returns it.
func (c *Client) RotateKey(ctx context.Context, userID string, options ...ChangeOption) (string, error) {
	var answer struct {
		NewAPIKey string `json:"new_api_key"`
	}
	err := c.change(ctx, call{method: http.MethodPost, path: enginePath(userID) + "/rotate-key", user: userID, keys: platform, out: &answer}, options)
	return answer.NewAPIKey, err
}

// KeepAwake keeps a user's running engine from being put to sleep for a while,
// 1 second to 1 hour, and returns until when. Parts of a second are rounded up.
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

// Destroy removes a user's engine with its brain and key.
func (c *Client) Destroy(ctx context.Context, userID string, options ...ChangeOption) (*Engine, error) {
	e := new(Engine)
	return e, c.change(ctx, call{method: http.MethodDelete, path: enginePath(userID), user: userID, keys: platform, out: e}, options)
}

func wholeSeconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }
