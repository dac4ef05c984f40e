package scheduler

import (
	"context"
	"errors"

	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/idle"
	"github.com/septemberai/orch/secrets"
)

// Caller is an authenticated product, with the user's engine, both as read for the call.
type Caller struct {
	Product *engine.Product
	// Engine is the user's row; nil if there is none.
	Engine *engine.Row
	// UserID is the user whose engine the call is about.
	UserID string
	// IdempotencyKey makes a repeated start, stop, rotation or destroy return the same
	// result; empty: none.
	IdempotencyKey string

	// of distinguishes requests of one kind for one user, with IdempotencyKey; repeated is
	// the record of the call that this one repeats.
	of       string
	restores store.Snapshot // what a restore restores
	repeated *registry.Idempotency

	keyHash string
	visit   *idle.Visit // of an admit, from before its engine's row is read
	admits  bool
}

// Authenticate reads the product of a platform key, and its user's engine, in one read that
// begins after the call arrived. INVALID_PLATFORM_KEY: no product has this key.
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

// AuthenticateAdmit is Authenticate for an admit: the engine is not put to sleep until
// Leave is called, which the caller must do.
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

var errPlatformKey = engine.Errorf(engine.InvalidPlatformKey, "the X-Platform-Key header does not contain the platform key of a product")

// CheckPlatformKey returns INVALID_PLATFORM_KEY unless a product has this key, or had it
// recently. It is for a call whose user is not known yet, which Authenticate must follow.
func (s *Scheduler) CheckPlatformKey(ctx context.Context, platformKey string) error {
	if !secrets.IsPlatformKey(platformKey) {
		return errPlatformKey
	}
	_, err := s.productID(ctx, secrets.Hash(platformKey))
	return err
}

// productID returns the id of the product whose platform key has this hash, or had it when
// it was last used.
func (s *Scheduler) productID(ctx context.Context, keyHash string) (string, error) {
	if id, known := s.productIDs.Load(keyHash); known {
		return id.(string), nil
	}
	id, err := s.store.ProductIDByKey(ctx, keyHash)
	if errors.Is(err, registry.ErrNotFound) {
		return "", errPlatformKey
	}
	if err != nil {
		return "", s.askToMend(err)
	}
	s.productIDs.Store(keyHash, id)
	return id, nil
}

// refresh reads product and engine again.
func (c *Caller) refresh(ctx context.Context, s *Scheduler) error {
	id, err := s.productID(ctx, c.keyHash)
	if err != nil {
		return err
	}
	if c.admits {
		if c.visit == nil {
			c.visit = s.activity.Enter(registry.Fingerprint(id, c.UserID))
		}
		c.visit.Look()
	}
	c.Product, c.Engine, err = s.store.Lookup(ctx, c.keyHash, id, c.UserID)
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
