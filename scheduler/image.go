package scheduler

import (
	"context"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
)

// Digests resolves images to their current digest ("sha256:...") within a short time. An
// error means that the digest is unknown now, and the image must be started by its name.
// The implementation logs that.
type Digests interface {
	Digest(ctx context.Context, image string) (string, error)
}

// digestOf returns the current digest of an image; empty: images are not resolved, or the
// digest is unknown now.
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

// Pinned returns the digest by which an engine is started; empty: it is started by the name
// of its image.
func (s *Scheduler) Pinned(e *engine.Row) string {
	if s.opts.Digests == nil {
		return ""
	}
	return e.Digest
}

// foresee resolves an image that an operation is going to pin, during its earlier steps.
func (s *Scheduler) foresee(image string) {
	if s.opts.Digests != nil {
		s.ops.Background(func(ctx context.Context) { s.digestOf(ctx, image) })
	}
}

// starts reports whether an operation starts a process.
func starts(kind engine.OpKind) bool {
	return kind == engine.OpProvision || kind == engine.OpStart || kind == engine.OpRestart || kind == engine.OpRestore || kind == engine.OpMove
}

// pin resolves the image of an engine that is about to be started, unless that was done
// before. The digest is started from then on. If it is unknown, the image is started by its
// name, and the next start tries again.
func (o *work) pin(ctx context.Context) error {
	row, kind := o.Row, o.Row.Op.Kind
	if o.s.opts.Digests == nil || row.Digest != "" || !starts(kind) {
		return nil
	}
	if kind != engine.OpProvision {
		// A version of the service without digests may have written the row since.
		v, err := o.s.cluster.Variable(ctx, row.JobID())
		if err == nil && v.Witness != nil && v.Witness.Image == row.Image {
			row.Digest = v.Witness.Digest
		}
	}
	if row.Digest == "" {
		row.Digest = o.s.digestOf(ctx, row.Image)
	}
	if row.Digest != "" {
		o.Log.Info("the engine's image is pinned", "image", row.Image, "digest", row.Digest)
	}
	return ctx.Err()
}

// anotherImage reports whether a warm engine runs another digest than the current one of
// its image. While that is unknown (digest is empty), it returns false, so that an outage
// of a registry replaces nothing.
func anotherImage(row *engine.Row, digest string) bool {
	return digest != "" && row.Digest != digest
}

// followTags keeps the digests of the images of warm engines cached on this replica until
// ctx ends, so that no claim waits for a registry.
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
