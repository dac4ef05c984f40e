package scheduler

import (
	"context"
	"errors"
	"reflect"
	"regexp"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/secrets"
)

// RegisterProduct registers a product and returns it with its platform key, which is
// returned only this once and stored as a hash. PRODUCT_SLUG_EXISTS, INVALID_REQUEST.
func (s *Scheduler) RegisterProduct(ctx context.Context, slug, displayName string, policy engine.Policy) (*engine.Product, string, error) {
	if err := engine.CheckSlug(slug); err != nil {
		return nil, "", engine.Errorf(engine.InvalidRequest, "%v", err)
	}
	if err := s.checkPolicy(policy); err != nil {
		return nil, "", err
	}
	key := secrets.NewPlatformKey()
	p := &engine.Product{
		ProductID: newID(), Slug: slug, DisplayName: displayName, Policy: policy,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), PlatformKeyHash: secrets.Hash(key), Revision: 1,
	}
	err := s.audited(ctx, audit.ActionProductRegister, p.ProductID, map[string]any{"slug": slug}, func() error {
		err := s.store.CreateProduct(ctx, p)
		if errors.Is(err, registry.ErrExists) {
			return engine.Errorf(engine.ProductSlugExists, "a product with the slug %q exists already", slug)
		}
		return err
	}, func(now *engine.Product) bool { return now != nil && now.PlatformKeyHash == p.PlatformKeyHash })
	if err != nil {
		return nil, "", err
	}
	s.tellVault(ctx, p, false)
	return p, key, nil
}

// tellVault writes the witness of a product that has just changed, or whose deletion was
// refused. If that fails, the leader's next pass does it.
func (s *Scheduler) tellVault(ctx context.Context, p *engine.Product, kept bool) {
	if err := s.witnessProduct(ctx, p, kept); err != nil {
		s.log.Warn("cannot write a product's change to Vault; the leader does it in its next pass", "product_id", p.ProductID, "error", err)
	}
}

func (s *Scheduler) checkPolicy(policy engine.Policy) error {
	if err := policy.Check(); err != nil {
		return engine.Errorf(engine.InvalidRequest, "%v", err)
	}
	if policy.BrainMB != nil && !s.cluster.SetsQuotas() {
		return engine.Errorf(engine.InvalidRequest, "policy.brain_mb: Nomad's plugin mkdir creates the volumes and sets no quotas; set ORCH_VOLUME_PLUGIN to a plugin on the nodes that does")
	}
	if policy.Isolation != "" && s.opts.Job.Driver != jobs.Docker {
		return engine.Errorf(engine.InvalidRequest, "policy.isolation: engines run with the driver %s, and only containers can be isolated (ORCH_ENGINE_DRIVER=docker)", s.opts.Job.Driver)
	}
	if policy.EngineImage != "" && CheckImage(s.opts.Job.Driver, policy.EngineImage) != nil {
		return engine.Errorf(engine.InvalidRequest, "policy.engine_image is not an image reference")
	}
	return nil
}

// SetPolicy replaces a product's policy, if it has not changed; the new one is effective
// from the next request on, on every replica. unchanged reports whether a policy is the one
// that the caller has read; nil: that does not matter. A repeated call, after a lost
// response, succeeds too. PRODUCT_NOT_FOUND, INVALID_REQUEST, POLICY_CHANGED.
func (s *Scheduler) SetPolicy(ctx context.Context, productID string, policy engine.Policy, unchanged func(engine.Policy) bool) (engine.Policy, error) {
	if err := s.checkPolicy(policy); err != nil {
		return policy, err
	}
	may := func(now engine.Policy) error {
		if unchanged == nil || unchanged(now) || reflect.DeepEqual(now, policy) {
			return nil
		}
		return engine.Errorf(engine.PolicyChanged, "the product's policy was changed since you read it; read it again and repeat the change")
	}
	return policy, s.onProduct(ctx, audit.ActionPolicyUpdate, productID, map[string]any{"policy": policy}, func() error {
		p, err := s.store.SetPolicy(ctx, productID, policy, may)
		if err == nil {
			s.tellVault(ctx, p, false)
		}
		return err
	}, func(now *engine.Product) bool { return now != nil && reflect.DeepEqual(now.Policy, policy) })
}

// RotatePlatformKey gives a product a new platform key, which is returned only this once;
// the old one stays valid for overlap. PRODUCT_NOT_FOUND.
func (s *Scheduler) RotatePlatformKey(ctx context.Context, productID string, overlap time.Duration) (key string, err error) {
	key = secrets.NewPlatformKey()
	hash := secrets.Hash(key)
	details := map[string]any{"overlap_seconds": int(overlap.Seconds())}
	err = s.onProduct(ctx, audit.ActionPlatformKeyRotate, productID, details, func() error {
		p, err := s.store.RotatePlatformKey(ctx, productID, hash, overlap)
		if err == nil {
			s.tellVault(ctx, p, false)
		}
		return err
	}, func(now *engine.Product) bool { return now != nil && now.PlatformKeyHash == hash })
	if err != nil {
		return "", err
	}
	return key, nil
}

// DeleteProduct deletes a product that has no engines. It is marked as deleted in Vault
// first, so that a registry that goes back in time does not restore it. PRODUCT_NOT_FOUND,
// PRODUCT_HAS_ENGINES.
func (s *Scheduler) DeleteProduct(ctx context.Context, productID string) error {
	return s.onProduct(ctx, audit.ActionProductDelete, productID, nil, func() error {
		t, err := s.store.Tenant(ctx, productID)
		if err == nil && t.Engines > 0 {
			err = registry.ErrHasEngines
		}
		if err == nil {
			err = s.markDeleted(ctx, t.Product)
		}
		if err == nil {
			if err = s.store.DeleteProduct(ctx, productID); errors.Is(err, registry.ErrHasEngines) {
				s.tellVault(ctx, t.Product, true) // an engine was created meanwhile
			}
		}
		if errors.Is(err, registry.ErrHasEngines) {
			return engine.Errorf(engine.ProductHasEngines, "the product still has engines; destroy them first")
		}
		return err
	}, func(now *engine.Product) bool { return now == nil })
}

// Products returns all products with their counts of engines, oldest first, and separately
// those whose record cannot be read.
func (s *Scheduler) Products(ctx context.Context) ([]registry.Tenant, []*registry.Unreadable, error) {
	return s.store.Tenants(ctx)
}

// productIDPattern matches the form of newID; other ids are not read.
var productIDPattern = regexp.MustCompile(`^[a-z2-7]{26,64}$`)

// Product returns one product. PRODUCT_NOT_FOUND, RECORD_UNREADABLE.
func (s *Scheduler) Product(ctx context.Context, productID string) (registry.Tenant, error) {
	if !productIDPattern.MatchString(productID) {
		return registry.Tenant{}, productError(registry.ErrNotFound)
	}
	t, err := s.store.Tenant(ctx, productID)
	return t, s.askToMend(productError(err))
}

func productError(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return engine.Errorf(engine.ProductNotFound, "there is no such product")
	}
	return err
}

// onProduct audits a change of an existing product; see audited.
func (s *Scheduler) onProduct(ctx context.Context, action, productID string, details map[string]any, change func() error, done func(*engine.Product) bool) error {
	if _, err := s.Product(ctx, productID); err != nil {
		return err
	}
	return s.audited(ctx, action, productID, details, func() error { return productError(change()) }, done)
}

// audited makes an admin's change of a product between beginning and completing its audit row.
// done reports, by a product or nil if there is none, whether the change was made.
func (s *Scheduler) audited(ctx context.Context, action, productID string, details map[string]any, change func() error, done func(*engine.Product) bool) error {
	entry := audit.Entry{ProductID: productID, Action: action, Actor: adminActor(ctx), Metadata: details}
	return s.auditedChange(ctx, entry, func() error {
		fault.Hit(action + "/" + operation.AtAudited)
		err := change()
		fault.Hit(action + "/" + atWritten)
		return err
	}, func(ctx context.Context) (bool, error) {
		t, err := s.store.Tenant(ctx, productID)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return false, err
		}
		return done(t.Product), nil
	})
}
