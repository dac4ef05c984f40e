package scheduler

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// run keeps the pool filled, while this replica leads, until ctx ends.
func (p *warmPool) run(ctx context.Context) {
	defer p.work.Wait()
	labelled := time.Time{}
	for ctx.Err() == nil {
		if p.s.informed() {
			if err := p.tend(ctx); err != nil && ctx.Err() == nil {
				p.s.log.Warn("cannot look after the warm engines; trying again", "error", err)
			}
			if time.Since(labelled) > labelEvery {
				labelled = time.Now()
				p.labelAll(ctx)
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

// awaitQuiet waits until no engine was claimed for a moment, or for warmEvery: to make
// new ones, and to label jobs, takes the cores that a burst of claims needs.
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

// wanted is how many warm engines there should be, by kind: the service's own
// number of its standard engine, and what products' policies add.
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
				continue // its own provisions fail of it
			}
			n[p.s.kindOf(t.Product, image)] += *size
		}
	}
	return n, nil
}

// tend makes what is missing and removes what nobody can use: engines of another
// job file or image, with older provider keys, failed ones, and more than are
// wanted.
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
			p.s.log.Debug("cannot tell whether warm engines have the newest provider keys", "error", err)
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
		case row.State == engine.Running && row.Op == nil && row.EnvVersion < keys:
			p.remove(ctx, row, "it has older provider keys")
		case row.State == engine.Running && row.Op == nil && anotherImage(row, p.s.digestOf(ctx, row.Image)):
			p.remove(ctx, row, "its image is another one now")
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

// make begins to make one warm engine, and says whether it has.
func (p *warmPool) make(ctx context.Context, fingerprint string, kind warmKind, before *registry.WarmBackoff) bool {
	select {
	case p.slots <- struct{}{}:
	default:
		return false
	}
	began := make(chan bool, 1)
	p.work.Go(func() {
		defer func() { <-p.slots }()
		o, err := p.begin(ctx, fingerprint, kind)
		began <- err == nil
		engineID := ""
		if err == nil {
			var made *engine.Row
			if made, err = o.wait(ctx); made != nil && made.State == engine.Failed {
				engineID = made.EngineID // tend finds it, too
			}
		}
		switch {
		case err == nil && before != nil:
			p.recovered(ctx, before)
		case errors.Is(err, registry.ErrConflict):
			// Another replica has the volume that it was to get, or leads by now.
		case err != nil && ctx.Err() == nil:
			p.s.log.Warn("cannot make a warm engine; trying again later", "image", kind.image, "error", err)
			p.failed(ctx, fingerprint, engineID, AsError(err).Message)
		}
	})
	return <-began
}

// failed counts an engine that could not be made, or that failed, once.
func (p *warmPool) failed(ctx context.Context, fingerprint, engineID, why string) {
	p.mu.Lock()
	told := p.told[engineID]
	if engineID != "" {
		p.told[engineID] = true
	}
	p.mu.Unlock()
	if !told {
		p.backOff(ctx, fingerprint, why, true)
	}
}

// backOff keeps a kind from being made for a while, which doubles with each
// attempt that failed. Those that failed together count as one.
func (p *warmPool) backOff(ctx context.Context, fingerprint, why string, failed bool) {
	backoffs, err := p.s.store.WarmBackoffs(ctx)
	if err == nil {
		now := time.Now().UTC()
		b := backoffs[fingerprint]
		if b == nil {
			b = &registry.WarmBackoff{Fingerprint: fingerprint}
		}
		if engine.StillWaits(b.RetryAt, now, p.s.opts.Restart.Longest()) {
			return
		}
		b.Error, b.RetryAt = why, now.Add(p.s.opts.Restart.After(b.Attempts))
		if failed {
			b.Attempts++
		}
		err = p.s.store.PutWarmBackoff(ctx, b)
	}
	if err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		p.s.log.Debug("cannot note that warm engines are not to be made for a while", "error", err)
	}
}

// recovered forgets a backoff.
func (p *warmPool) recovered(ctx context.Context, b *registry.WarmBackoff) {
	if err := p.s.store.DeleteWarmBackoff(ctx, b); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		p.s.log.Debug("cannot forget a backoff of warm engines", "error", err)
	}
}

// place finds room for a warm engine and one more of its size: the last room on a
// node is a user's. CAPACITY_EXHAUSTED: there is none.
func (p *warmPool) place(ctx context.Context, kind warmKind) (*place, error) {
	for tried := map[string]bool{}; ; {
		place, err := p.s.choose(ctx, kind.nodePool, kind.resources, 2, tried)
		if err != nil && len(tried) == 0 {
			return nil, err
		}
		if err != nil || !place.fits {
			if place != nil {
				p.s.pool.Release(place.pooled)
			}
			return nil, engine.Errorf(engine.CapacityExhausted, "no node has room for a warm engine and one more of its size")
		}
		if hasRoom(p.withPlanned(place.node), p.s.needOf(kind.resources), 2) {
			return place, nil
		}
		p.s.pool.Release(place.pooled)
		tried[place.node.ID] = true
	}
}

// withPlanned takes off a node's room what the warm engines will need that are
// being made there and that Nomad has not placed yet.
func (p *warmPool) withPlanned(node cluster.Node) cluster.Node {
	for _, row := range p.s.mirror.In(engine.WarmProduct, engine.Provisioning) {
		if _, placed := p.s.cluster.Newest(row.JobID()); row.NodeID == node.ID && !placed {
			node.FreeCPUMHz -= row.Resources.CPUMHz
			node.FreeMemoryMB -= row.Resources.MemoryMB
			node.FreeDiskMB -= p.s.template.Load().DiskMB()
			node.FreePorts--
		}
	}
	return node
}

// begin writes the row of a new warm engine and launches its provision.
func (p *warmPool) begin(ctx context.Context, fingerprint string, kind warmKind) (*operation, error) {
	s := p.s
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	place, err := p.place(ctx, kind)
	if err != nil {
		return nil, err
	}
	s.foresee(kind.image)
	op := s.newOp(ctx, engine.OpProvision, audit.ActionProvision, "")
	row := &engine.Row{
		ProductID: engine.WarmProduct, ProductSlug: engine.WarmProduct, UserID: newID(), Warm: fingerprint,
		State: engine.Provisioning, Desired: engine.Running,
		Image: kind.image, Resources: kind.resources, NodePool: kind.nodePool, KeyProofPath: kind.proofPath,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Op: op,
	}
	place.applyTo(row)
	if op.AuditID, err = s.begin(ctx, row, op.Action, actorSystem, map[string]any{"warm": true}); err != nil {
		s.pool.Release(place.pooled)
		return nil, err
	}
	launched, _ := s.reserveLaunch(op.ID)
	defer launched()
	if err := s.store.CreateWarm(ctx, row, place.pooled); err != nil {
		s.pool.Release(place.pooled)
		if err = s.unanswered(row, err); !errors.Is(err, errUnanswered) {
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	s.pool.Claimed(place.pooled)
	return s.launch(row), nil
}

// remove destroys a warm engine, if there is room for one more at work.
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
			p.s.log.Warn("cannot remove a warm engine; trying again", "engine_id", row.EngineID, "error", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.told, row.EngineID)
	})
}

// destroy destroys a warm engine that is still nobody's, and says whether it was.
func (p *warmPool) destroy(ctx context.Context, row *engine.Row, why string) (bool, error) {
	now, err := p.s.store.Engine(ctx, row.ProductID, row.UserID)
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.s.log.Info("removing a warm engine", "engine_id", row.EngineID, "why", why)
	// A claim since then has taken the row away, and a claim from now on makes
	// this fail.
	_, err = p.s.Destroy(ctx, &Caller{Product: &engine.Product{ProductID: engine.WarmProduct, Slug: actorSystem}, Engine: now, UserID: now.UserID})
	if AsError(err) != nil && AsError(err).Code == engine.EngineNotFound {
		return false, nil
	}
	return err == nil, err
}
