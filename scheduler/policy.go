package scheduler

import (
	"context"
	"errors"
	"regexp"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
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
		return engine.Errorf(engine.InvalidRequest, "engine_version must be the name of an executable, without a path")
	case !imagePattern.MatchString(image):
		return engine.Errorf(engine.InvalidRequest, "engine_version is not an image reference")
	}
	return nil
}

// allowedImage is the image that a product gets when it asks for one, or for
// none (SPEC section 2).
func (s *Scheduler) allowedImage(p *engine.Product, asked string) (string, error) {
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
	if p.Policy.AllowsImage(asked) {
		return asked, nil
	}
	return "", engine.Errorf(engine.PolicyDenied, "the product's policy does not allow this engine_version")
}

// resources are what an engine of a product gets.
func (s *Scheduler) resources(p engine.Policy) engine.Resources {
	r := s.opts.Resources
	if p.CPUMHz != nil {
		r.CPUMHz = *p.CPUMHz
	}
	if p.MemoryMB != nil {
		r.MemoryMB = *p.MemoryMB
	}
	if p.BrainMB != nil {
		r.BrainMB = *p.BrainMB
	}
	return r
}

// resourcesNow are the resources that an engine's next start gives it: what its
// product's policy says by now. The volume of one that needs more keeps it on its node.
func (s *Scheduler) resourcesNow(ctx context.Context, row *engine.Row) (engine.Resources, error) {
	if row.ProductID == engine.WarmProduct {
		return row.Resources, nil // another kind is another engine
	}
	p, err := s.store.Product(ctx, row.ProductID)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return row.Resources, nil
	case err != nil:
		return engine.Resources{}, err
	}
	return s.resources(p.Policy), nil
}
