package scheduler

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// run keeps the pool filled, while this replica leads, until ctx ends.
func (p *warmPool) run(ctx context.Context) {
	defer p.work.Wait()
	for ctx.Err() == nil {
		if p.s.informed() {
			if err := p.tend(ctx); err != nil && ctx.Err() == nil {
				p.s.log.Warn("cannot maintain the warm engines; retrying", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-p.trigger:
			p.awaitQuiet(ctx)
		case <-time.After(warmEvery):
		}
	}
}

// awaitQuiet waits until no engine was claimed for a moment, at most warmEvery, because
// creating engines and labelling jobs uses the CPU that a burst of claims needs.
func (p *warmPool) awaitQuiet(ctx context.Context) {
	longest := time.Now().Add(warmEvery)
	for {
		last := time.Unix(0, p.claimed.Load())
		if !pause.For(ctx, min(time.Until(last.Add(warmQuiet)), time.Until(longest))) {
			return
		}
		if p.claimed.Load() == last.UnixNano() || !time.Now().Before(longest) {
			return
		}
	}
}

// wanted returns how many warm engines there should be, by kind: the service's setting for
// its default kind, plus what products' policies add.
func (p *warmPool) wanted(ctx context.Context) (map[warmKind]int, error) {
	n := map[warmKind]int{}
	if p.s.opts.WarmPool > 0 {
		n[warmKind{image: p.s.opts.DefaultImage, resources: p.s.opts.Resources}] = p.s.opts.WarmPool
	}
	tenants, _, err := p.s.store.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tenants {
		if size := t.Policy.WarmPool; size != nil && *size > 0 {
			image, err := p.s.allowedImage(t.Product, "")
			if err != nil {
				continue // its own provisions fail for the same reason
			}
			n[p.s.kindOf(t.Product, image)] += *size
		}
	}
	return n, nil
}

// tend creates missing warm engines and removes unusable ones: those of another job file or
// image, with older provider keys, failed ones, and surplus ones.
func (p *warmPool) tend(ctx context.Context) error {
	wanted, err := p.wanted(ctx)
	if err != nil {
		return err
	}
	backoffs, err := p.s.store.WarmBackoffs(ctx)
	if err != nil {
		return err
	}
	rows, keys := p.s.mirror.Of(engine.WarmProduct), 0
	if len(rows) > 0 {
		if keys, err = p.newestKeys(ctx); err != nil {
			p.s.log.Debug("cannot check whether warm engines have the newest provider keys", "error", err)
		}
	}
	missing, kinds := map[string]int{}, map[string]warmKind{}
	for kind, n := range wanted {
		f := p.fingerprint(kind)
		missing[f], kinds[f] = n, kind
	}
	for _, row := range rows {
		switch {
		case row.State == engine.Destroying:
		case p.s.evacuates(row.NodeID) && row.Op == nil:
			p.remove(ctx, row, "its node is being evacuated")
		case row.State == engine.Running && row.Op == nil && row.EnvVersion < keys:
			p.remove(ctx, row, "it has older provider keys")
		case row.State == engine.Running && row.Op == nil && anotherImage(row, p.s.digestOf(ctx, row.Image)):
			p.remove(ctx, row, "its image has changed")
		case row.State == engine.Running || row.State == engine.Provisioning:
			if missing[row.Warm]--; missing[row.Warm] < 0 && row.Op == nil {
				p.remove(ctx, row, "it is not wanted")
			}
		default:
			p.failed(ctx, row.Warm, row.EngineID, "the engine is "+string(row.State)+": "+row.Reason)
			p.remove(ctx, row, string(row.State))
		}
	}
	for f, backoff := range backoffs {
		if _, known := kinds[f]; !known {
			p.recovered(ctx, backoff)
		}
	}
	now := time.Now()
	for _, f := range slices.Sorted(maps.Keys(kinds)) {
		backoff := backoffs[f]
		if backoff != nil && engine.StillWaits(backoff.RetryAt, now, p.s.opts.Restart.Longest()) {
			continue
		}
		for n := missing[f]; n > 0 && ctx.Err() == nil; n-- {
			if !p.make(ctx, f, kinds[f], backoff) {
				break
			}
		}
	}
	return nil
}

// remove destroys a warm engine, unless too many are in progress.
func (p *warmPool) remove(ctx context.Context, row *engine.Row, why string) {
	if !p.reserve(row) {
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		p.release(row)
		return
	}
	p.work.Go(func() {
		defer func() { <-p.slots }()
		defer p.release(row)
		if _, err := p.destroy(ctx, row, why); err != nil && ctx.Err() == nil && !overtaken(err) {
			p.s.log.Warn("cannot remove a warm engine; retrying", "engine_id", row.EngineID, "error", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.told, row.EngineID)
	})
}

// destroy destroys a warm engine that still has no user, and reports whether it did.
func (p *warmPool) destroy(ctx context.Context, row *engine.Row, why string) (bool, error) {
	now, err := p.s.store.Engine(ctx, row.ProductID, row.UserID)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.s.log.Info("removing a warm engine", "engine_id", row.EngineID, "why", why)
	// A claim since then has moved the row, which makes this fail; and this makes later
	// claims fail.
	_, err = p.s.Destroy(ctx, &Caller{Product: &engine.Product{ProductID: engine.WarmProduct, Slug: actorSystem}, Engine: now, UserID: now.UserID})
	if AsError(err) != nil && AsError(err).Code == engine.EngineNotFound {
		return false, nil
	}
	return err == nil, err
}
