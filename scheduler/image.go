package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

// Digests says which digest ("sha256:...") an image means at present, within a short
// time. An error: that cannot be told now, and the image has to be started as it is
// named. Whoever implements it says so in the log.
type Digests interface {
	Digest(ctx context.Context, image string) (string, error)
}

// digestOf is which digest an image means at present; empty: images are not
// resolved, or that cannot be told now.
func (s *Scheduler) digestOf(ctx context.Context, image string) string {
	if s.opts.Digests == nil {
		return ""
	}
	digest, err := s.opts.Digests.Digest(ctx, image)
	if err != nil {
		return ""
	}
	return digest
}

// Pinned is the digest by which an engine is started; empty: it is started as its
// image is named.
func (s *Scheduler) Pinned(e *engine.Row) string {
	if s.opts.Digests == nil {
		return ""
	}
	return e.Digest
}

// foresee has an image resolved that an operation is going to pin, while it is still
// at the steps before.
func (s *Scheduler) foresee(image string) {
	if s.opts.Digests != nil {
		s.background(func(ctx context.Context) { s.digestOf(ctx, image) })
	}
}

// starts says whether an operation starts a process.
func starts(kind engine.OpKind) bool {
	return kind == engine.OpProvision || kind == engine.OpStart || kind == engine.OpRestart
}

// pin resolves the image of an engine that is about to be started, unless that was
// done before: what it means now is started from then on. An image that cannot be
// resolved is started as it is named, and the next start tries again.
func (o *operation) pin(ctx context.Context) error {
	row, kind := o.row, o.row.Op.Kind
	if o.s.opts.Digests == nil || row.Digest != "" || !starts(kind) {
		return nil
	}
	if kind != engine.OpProvision {
		// A version of the service that knows no digests may have written the row since.
		v, err := o.s.cluster.Variable(ctx, row.JobID())
		if err == nil && v.Witness != nil && v.Witness.Image == row.Image {
			row.Digest = v.Witness.Digest
		}
	}
	if row.Digest == "" {
		row.Digest = o.s.digestOf(ctx, row.Image)
	}
	if row.Digest != "" {
		o.log.Info("the engine's image is pinned", "image", row.Image, "digest", row.Digest)
	}
	return ctx.Err()
}

// anotherImage says whether a warm engine runs something else than its image means now.
// While that cannot be told (digest is empty), none is: an outage of a registry
// replaces nothing.
func anotherImage(row *engine.Row, digest string) bool {
	return digest != "" && row.Digest != digest
}

// followTags keeps the digests of the images of warm engines known on this replica,
// so that no claim waits for a registry, until ctx ends.
func (p *warmPool) followTags(ctx context.Context) {
	for p.s.opts.Digests != nil && pause.For(ctx, warmEvery) {
		asked := map[string]bool{}
		for _, row := range p.s.mirror.Of(engine.WarmProduct) {
			if !asked[row.Image] {
				asked[row.Image] = true
				p.s.digestOf(ctx, row.Image)
			}
		}
	}
}
