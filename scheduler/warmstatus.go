package scheduler

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
)

// WarmKind is the state of the warm engines of one kind, as far as this replica knows.
type WarmKind struct {
	Fingerprint string
	Image       string
	Resources   engine.Resources
	NodePool    string // empty: the cluster's default
	// Wanted is how many there should be; 0: existing ones will be destroyed.
	Wanted int
	// Ready counts engines without a user, and Making those that are being created.
	Ready, Making int
	// Error is why none are created before RetryAt; empty: nothing prevents it.
	Error   string
	RetryAt time.Time
}

// WarmKinds returns the state of the warm engines, by kind. nil: not known yet, because the
// engine's job file is not parsed. BACKEND_UNAVAILABLE.
func (s *Scheduler) WarmKinds(ctx context.Context) ([]WarmKind, error) {
	if s.template.Load() == nil {
		return nil, nil
	}
	wanted, err := s.warm.wanted(ctx)
	if err != nil {
		return nil, err
	}
	backoffs, err := s.store.WarmBackoffs(ctx)
	if err != nil {
		return nil, err
	}
	kinds := map[string]*WarmKind{}
	for k, n := range wanted {
		f := s.warm.fingerprint(k)
		kinds[f] = &WarmKind{Fingerprint: f, Image: k.image, Resources: k.resources, NodePool: k.nodePool, Wanted: n}
		if b := backoffs[f]; b != nil {
			kinds[f].Error, kinds[f].RetryAt = b.Error, b.RetryAt
		}
	}
	for _, row := range s.mirror.Of(engine.WarmProduct) {
		k := kinds[row.Warm]
		if k == nil {
			k = &WarmKind{Fingerprint: row.Warm, Image: row.Image, Resources: row.Resources, NodePool: row.NodePool}
			kinds[row.Warm] = k
		}
		switch {
		case s.warm.ready(row):
			k.Ready++
		case row.State == engine.Provisioning:
			k.Making++
		}
	}
	all := make([]WarmKind, 0, len(kinds))
	for _, k := range kinds {
		all = append(all, *k)
	}
	slices.SortFunc(all, func(a, b WarmKind) int {
		return cmp.Or(cmp.Compare(a.Image, b.Image), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
	return all, nil
}

// WarmEngines returns how many engines have no user, as far as this replica knows.
func (s *Scheduler) WarmEngines() int {
	return len(s.mirror.In(engine.WarmProduct, engine.Running))
}
