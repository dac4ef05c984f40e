package scheduler

import (
	"context"
	"errors"
	"path"
	"regexp"
	"time"

	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

var (
	// imagePattern is what a docker image reference is made of; it keeps Nomad's
	// interpolation out of the task's config.
	imagePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]{0,254}$`)
	// filePattern is an executable's name in the bin dir, never a path.
	filePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,254}$`)
)

// CheckImage says whether an image has the form that a driver takes.
func CheckImage(driver jobs.Driver, image string) error {
	switch {
	case driver == jobs.RawExec && !filePattern.MatchString(image):
		return fail(InvalidRequest, "engine_version must be the name of an executable, without a path")
	case !imagePattern.MatchString(image):
		return fail(InvalidRequest, "engine_version is not an image reference")
	}
	return nil
}

// allowedImage is the image that a product gets when it asks for one, or for
// none (SPEC section 2).
func (s *Scheduler) allowedImage(p *registry.Product, asked string) (string, error) {
	standard := p.Policy.EngineImage
	if standard == "" {
		standard = s.opts.DefaultImage
	}
	if asked == "" {
		return standard, CheckImage(s.opts.Job.Driver, standard)
	}
	if err := CheckImage(s.opts.Job.Driver, asked); err != nil {
		return "", err
	}
	if asked == standard || asked == s.opts.DefaultImage {
		return asked, nil
	}
	for _, glob := range p.Policy.AllowedImages {
		if ok, _ := path.Match(glob, asked); ok {
			return asked, nil
		}
	}
	return "", fail(PolicyDenied, "the product's policy does not allow this engine_version")
}

// resources are what an engine of a product gets.
func (s *Scheduler) resources(p registry.Policy) registry.Resources {
	r := s.opts.Resources
	if p.CPUMHz != nil {
		r.CPUMHz = *p.CPUMHz
	}
	if p.MemoryMB != nil {
		r.MemoryMB = *p.MemoryMB
	}
	return r
}

// RegisterProduct makes a product and returns it with its platform key, which is
// shown this once and kept as a hash. PRODUCT_SLUG_EXISTS, INVALID_REQUEST.
func (s *Scheduler) RegisterProduct(ctx context.Context, slug, displayName string, policy registry.Policy) (*registry.Product, string, error) {
	if err := registry.CheckSlug(slug); err != nil {
		return nil, "", fail(InvalidRequest, "%v", err)
	}
	if err := policy.Check(); err != nil {
		return nil, "", fail(InvalidRequest, "%v", err)
	}
	if policy.EngineImage != "" {
		if err := CheckImage(s.opts.Job.Driver, policy.EngineImage); err != nil {
			return nil, "", fail(InvalidRequest, "policy.engine_image has not the form of an image")
		}
	}
	key := secrets.NewPlatformKey()
	p := &registry.Product{
		ProductID: newID(), Slug: slug, DisplayName: displayName, Policy: policy,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), PlatformKeyHash: secrets.Hash(key),
	}
	err := s.store.CreateProduct(ctx, p)
	if errors.Is(err, registry.ErrExists) {
		return nil, "", fail(ProductSlugExists, "a product with the slug %q exists already", slug)
	}
	if err != nil {
		return nil, "", err
	}
	return p, key, nil
}
