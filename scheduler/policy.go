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
	// imagePattern matches the characters of docker image references. It excludes Nomad's
	// interpolation from the task's config.
	imagePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]{0,254}$`)
	// filePattern matches the name of an executable in the bin dir, but no path.
	filePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,254}$`)
)

// CheckImage returns an error unless an image has the form for a driver.
func CheckImage(driver jobs.Driver, image string) error {
	switch {
	case driver == jobs.RawExec && !filePattern.MatchString(image):
		return engine.Errorf(engine.InvalidRequest, "engine_version must be the name of an executable, without a path")
	case !imagePattern.MatchString(image):
		return engine.Errorf(engine.InvalidRequest, "engine_version must be an image reference")
	}
	return nil
}

// allowedImage returns the image for a product that requests this one, or "" for the
// default.
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

// resources returns the resources of a product's engines.
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
	r.Isolation = p.Isolation
	return r
}

// resourcesNow returns the resources of an engine's next start, from its product's current
// policy. The volume keeps the engine on its node even if it needs more than is free there.
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
