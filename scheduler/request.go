package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/idle"
	"github.com/septemberai/orch/secrets"
)

type requestIDKey struct{}

// WithRequestID marks what a request causes with its id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID is the id that WithRequestID set, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// Caller is a product that proved itself, with the engine that it asks about as
// both were when it asked.
type Caller struct {
	Product *engine.Product
	// Engine is the user's row; nil when there is none.
	Engine *engine.Row
	// UserID is whose engine the call is about.
	UserID string
	// IdempotencyKey makes the same start, stop, rotation or destroy again have the same
	// answer; empty: none.
	IdempotencyKey string

	keyHash string
	visit   *idle.Visit // of an admit, from before its engine's row is read
	admits  bool
}

// Authenticate finds the product of a platform key, and its user's engine, in
// one read that began after the call arrived. INVALID_PLATFORM_KEY: no product
// has this key.
func (s *Scheduler) Authenticate(ctx context.Context, platformKey, userID string) (*Caller, error) {
	if !secrets.IsPlatformKey(platformKey) {
		return nil, errPlatformKey
	}
	c := &Caller{UserID: userID, keyHash: secrets.Hash(platformKey)}
	if err := c.refresh(ctx, s); err != nil {
		return nil, err
	}
	return c, nil
}

// AuthenticateAdmit is Authenticate for an admit: the engine is not put to sleep
// under the answer. The caller is to be given to Leave.
func (s *Scheduler) AuthenticateAdmit(ctx context.Context, platformKey, userID string) (*Caller, error) {
	if !secrets.IsPlatformKey(platformKey) {
		return nil, errPlatformKey
	}
	c := &Caller{UserID: userID, keyHash: secrets.Hash(platformKey), admits: true}
	if err := c.refresh(ctx, s); err != nil {
		c.Leave()
		return nil, err
	}
	return c, nil
}

// Leave ends what AuthenticateAdmit began.
func (c *Caller) Leave() {
	if c.visit != nil {
		c.visit.Leave()
	}
}

var errPlatformKey = engine.Errorf(engine.InvalidPlatformKey, "the X-Platform-Key header does not hold the platform key of a product")

// refresh reads product and engine again.
func (c *Caller) refresh(ctx context.Context, s *Scheduler) error {
	id, known := s.productIDs.Load(c.keyHash)
	if !known {
		found, err := s.store.ProductIDByKey(ctx, c.keyHash)
		if errors.Is(err, registry.ErrNotFound) {
			return errPlatformKey
		}
		if err != nil {
			return s.askToMend(err)
		}
		s.productIDs.Store(c.keyHash, found)
		id = found
	}
	if c.admits {
		if c.visit == nil {
			c.visit = s.activity.Enter(registry.Fingerprint(id.(string), c.UserID))
		}
		c.visit.Look()
	}
	var err error
	c.Product, c.Engine, err = s.store.Lookup(ctx, c.keyHash, id.(string), c.UserID)
	if errors.Is(err, registry.ErrNotFound) {
		s.productIDs.Delete(c.keyHash)
		return errPlatformKey
	}
	return s.askToMend(err)
}

// engine returns the caller's engine, or ENGINE_NOT_FOUND.
func (c *Caller) engine() (*engine.Row, error) {
	if c.Engine == nil {
		return nil, engine.Errorf(engine.EngineNotFound, "this product has no engine for that user_id")
	}
	return c.Engine, nil
}
