package boot

import (
	"context"
	"errors"
)

// Rotation contains the two keys of a rotation of an engine.
type Rotation struct{ JobID, Path, Old, New string }

// Ask checks once whether an engine refuses the old key and accepts the new one. said is
// the difference from that, for the caller; "": there is none. An engine that accepts
// everybody gets neither key. The error means that it did not respond.
func (k *Rotation) Ask(ctx context.Context, p *Prober, url string) (said string, err error) {
	p, end := p.Of(k.JobID).Talk()
	defer end()
	var broken *Breach
	if err := p.Locked(ctx, url, k.Path); errors.As(err, &broken) {
		return broken.Said, nil
	} else if err != nil {
		return "", err
	}
	before, err := p.Status(ctx, url, k.Path, k.Old)
	if err != nil {
		return "", err
	}
	after, err := p.Status(ctx, url, k.Path, k.New)
	switch {
	case err != nil:
		return "", err
	case Refuses(before) && !Refuses(after):
		return "", nil
	case Refuses(before):
		return "it refuses the old key and the new one", nil
	case Refuses(after):
		return "it still accepts the old key, and has not read the new hash", nil
	}
	return "it accepts both the new key and the old one", nil
}
