package scheduler

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

const (
	// warmEvery is how often the leader looks whether warm engines are missing.
	warmEvery = 2 * time.Second
	// warmLull is how long nobody claims one before new ones are made.
	warmLull = 250 * time.Millisecond
	// warmMakers is how many warm engines are made, or removed, at a time.
	warmMakers = 4
	// warmProbe bounds the last look at a warm engine before it is handed out.
	warmProbe = 250 * time.Millisecond
	// warmLabels is how many jobs of claimed engines are labelled at a time.
	warmLabels = 2
	// labelEvery is how often jobs that still say "warm" are looked for.
	labelEvery = 10 * time.Second
)

// warmKind is what a warm engine can become.
type warmKind struct {
	image     string
	resources registry.Resources
	nodePool  string
}

// warmPool keeps engines that run, are healthy, and wait for a user. Each has an
// identity, a brain and a key of its own from birth; the key was told to nobody.
// A warm engine has a row as any other, of the product registry.WarmProduct: it
// is made, watched and removed by the same operations. A claim gives the row to
// a user in one transaction; what was handed out never comes back.
type warmPool struct {
	s     *Scheduler
	nudge chan struct{} // one was claimed
	slots chan struct{} // one per warm engine being made or removed
	work  sync.WaitGroup

	labels chan struct{} // one per job being labelled for a claim

	mu   sync.Mutex
	held map[string]bool       // engine_ids that this replica is about to claim
	ills map[string]*warmFault // by fingerprint
	told map[string]bool       // failed engines that ills has counted
}

// warmFault is why no warm engines of a kind are made for a while.
type warmFault struct {
	n     int
	until time.Time
}

func newWarmPool(s *Scheduler) *warmPool {
	return &warmPool{
		s: s, nudge: make(chan struct{}, 1), slots: make(chan struct{}, warmMakers), labels: make(chan struct{}, warmLabels), held: map[string]bool{},
		ills: map[string]*warmFault{}, told: map[string]bool{},
	}
}

// fingerprint names a kind of engine, of the job file and the settings of today.
func (p *warmPool) fingerprint(k warmKind) string {
	return digest(p.s.template.Load().Fingerprint(), k.image, strconv.Itoa(k.resources.CPUMHz), strconv.Itoa(k.resources.MemoryMB), k.nodePool)[:16]
}

// usable are the warm engines of a kind that may be handed out, as far as the
// view knows.
func (p *warmPool) usable(fingerprint string) (rows []*registry.Engine) {
	for _, row := range p.s.mirror.In(registry.WarmProduct, registry.Running) {
		if row.Warm == fingerprint && row.Op == nil && !p.s.health.Fails(row) && !p.s.nodeSilent(row.NodeID) {
			rows = append(rows, row)
		}
	}
	return rows
}

// hold reserves, within this replica, a warm engine that answers; nil: there is
// none. It is to be released.
func (p *warmPool) hold(ctx context.Context, fingerprint string) *registry.Engine {
	ctx, cancel := context.WithTimeout(ctx, warmProbe)
	defer cancel()
	for _, row := range shuffled(p.usable(fingerprint)) {
		p.mu.Lock()
		free := !p.held[row.EngineID]
		if free {
			p.held[row.EngineID] = true
		}
		p.mu.Unlock()
		if !free {
			continue
		}
		if p.s.probe.health(ctx, row.URL) == nil {
			return row
		}
		p.release(row)
	}
	return nil
}

func (p *warmPool) release(row *registry.Engine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, row.EngineID)
}

// claim gives the caller a warm engine of the kind that wanted names; false:
// there is none, and nothing was done.
func (p *warmPool) claim(ctx context.Context, caller *Caller, wanted *registry.Engine, spent *spent) (*registry.Engine, bool, error) {
	fingerprint := p.fingerprint(warmKind{wanted.Image, wanted.Resources, wanted.NodePool})
	for range maxClaims {
		at := time.Now()
		warm := p.hold(ctx, fingerprint)
		if warm == nil {
			return nil, false, nil
		}
		spent.since(spentProbing, at)
		row := warm.Clone()
		row.ProductID, row.ProductSlug, row.UserID = wanted.ProductID, wanted.ProductSlug, wanted.UserID
		row.CreatedAt, row.Idempotency = wanted.CreatedAt, wanted.Idempotency
		row.RunningSince, row.LastHealthAt = time.Now().UTC(), time.Now().UTC()
		row.Warm, row.Unlabelled, row.Restarts = "", true, nil
		at = time.Now()
		err := p.s.store.ClaimWarm(ctx, caller.Product, row, warm)
		spent.since(spentClaim, at)
		p.release(warm)
		switch {
		case err == nil:
			return row, true, nil
		case !errors.Is(err, registry.ErrConflict):
			return nil, false, err
		}
		// The engine went to another replica, or the product changed.
		if err := caller.refresh(ctx, p.s); err != nil {
			return nil, false, err
		}
	}
	return nil, false, nil
}

// handedOut has an engine that was claimed replaced, and its job labelled. Both are
// left until its caller's answer is ready: what they do in Nomad takes the node's
// and the servers' time.
func (p *warmPool) handedOut(row *registry.Engine) {
	select {
	case p.nudge <- struct{}{}:
	default:
	}
	row = row.Clone()
	p.s.background(func(ctx context.Context) {
		select {
		case p.labels <- struct{}{}:
			defer func() { <-p.labels }()
			_ = p.s.label(ctx, row) // else the leader does it later
		case <-ctx.Done():
		}
	})
}

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
		case <-p.nudge:
			p.lull(ctx)
		case <-time.After(warmEvery):
		}
	}
}

// lull waits until no engine was claimed for a moment, or for warmEvery: to make
// new ones takes the cores that a burst of claims needs.
func (p *warmPool) lull(ctx context.Context) {
	longest := time.NewTimer(warmEvery)
	defer longest.Stop()
	for {
		select {
		case <-p.nudge:
		case <-time.After(warmLull):
			return
		case <-longest.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// wanted is how many warm engines there should be, by kind: the service's own
// number of its standard engine, and what products' policies add.
func (p *warmPool) wanted(ctx context.Context) (map[warmKind]int, error) {
	n := map[warmKind]int{}
	if p.s.opts.WarmPool > 0 {
		n[warmKind{p.s.opts.DefaultImage, p.s.opts.Resources, ""}] = p.s.opts.WarmPool
	}
	tenants, err := p.s.store.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tenants {
		if size := t.Policy.WarmPool; size != nil && *size > 0 {
			image, err := p.s.allowedImage(t.Product, "")
			if err != nil {
				continue // its own provisions fail of it
			}
			n[warmKind{image, p.s.resources(t.Policy), t.Policy.NodePool}] += *size
		}
	}
	return n, nil
}

// tend makes what is missing and removes what nobody can use: engines of another
// job file or image, failed ones, and more than are wanted.
func (p *warmPool) tend(ctx context.Context) error {
	wanted, err := p.wanted(ctx)
	if err != nil {
		return err
	}
	missing, kinds := map[string]int{}, map[string]warmKind{}
	for kind, n := range wanted {
		f := p.fingerprint(kind)
		missing[f], kinds[f] = n, kind
	}
	for _, row := range p.s.mirror.Of(registry.WarmProduct) {
		switch {
		case row.State == registry.Destroying:
		case row.State == registry.Running || row.State == registry.Provisioning:
			if missing[row.Warm]--; missing[row.Warm] < 0 && row.Op == nil {
				p.remove(ctx, row, "not wanted")
			}
		default:
			p.fault(row)
			p.remove(ctx, row, string(row.State))
		}
	}
	for _, f := range slices.Sorted(maps.Keys(kinds)) {
		for n := missing[f]; n > 0 && p.mayMake(f) && ctx.Err() == nil; n-- {
			if !p.make(ctx, f, kinds[f]) {
				break
			}
		}
	}
	return nil
}

// fault counts an engine that could not be made, once.
func (p *warmPool) fault(row *registry.Engine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.told[row.EngineID] {
		p.told[row.EngineID] = true
		p.hinder(row.Warm)
	}
}

// hinder keeps a kind from being made for a while. The lock is held.
func (p *warmPool) hinder(fingerprint string) {
	ill := p.ills[fingerprint]
	if ill == nil {
		ill = &warmFault{}
		p.ills[fingerprint] = ill
	}
	ill.until = time.Now().Add(p.s.opts.Restart.after(ill.n))
	ill.n++
}

func (p *warmPool) mayMake(fingerprint string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ill := p.ills[fingerprint]
	return ill == nil || time.Now().After(ill.until)
}

// make begins to make one warm engine, and says whether it has.
func (p *warmPool) make(ctx context.Context, fingerprint string, kind warmKind) bool {
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
		if err == nil {
			_, err = o.wait(ctx)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		switch {
		case err == nil:
			delete(p.ills, fingerprint)
		case ctx.Err() == nil:
			p.hinder(fingerprint)
			p.s.log.Warn("cannot make a warm engine; trying again later", "image", kind.image, "error", err)
		}
	})
	return <-began
}

// begin writes the row of a new warm engine and launches its provision.
func (p *warmPool) begin(ctx context.Context, fingerprint string, kind warmKind) (*operation, error) {
	s := p.s
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	place, err := s.choose(ctx, kind.nodePool, kind.resources, nil)
	if err != nil {
		return nil, err
	}
	defer s.pool.release(place.pooled)
	if !place.fits {
		return nil, fail(CapacityExhausted, "no node has room for a warm engine")
	}
	op := s.newOp(ctx, registry.OpProvision, audit.ActionProvision, "")
	row := &registry.Engine{
		ProductID: registry.WarmProduct, ProductSlug: registry.WarmProduct, UserID: newID(), Warm: fingerprint,
		State: registry.Provisioning, Desired: registry.Running,
		Image: kind.image, Resources: kind.resources, NodePool: kind.nodePool,
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Op: op,
	}
	place.applyTo(row)
	if op.AuditID, err = s.begin(ctx, row, op.Action, actorSystem, map[string]any{"warm": true}); err != nil {
		return nil, err
	}
	if err := s.store.CreateWarm(ctx, row, place.pooled); err != nil {
		if errors.Is(err, registry.ErrUnavailable) {
			s.adopt(row)
		}
		s.abandon(ctx, op.AuditID, op.BeganAt, err)
		return nil, err
	}
	if place.pooled != nil {
		s.pool.claimed()
	}
	return s.launch(row), nil
}

// remove destroys a warm engine, if there is room for one more at work.
func (p *warmPool) remove(ctx context.Context, row *registry.Engine, why string) {
	p.mu.Lock()
	held := p.held[row.EngineID]
	p.mu.Unlock()
	if held {
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return
	}
	p.work.Go(func() {
		defer func() { <-p.slots }()
		p.s.log.Info("removing a warm engine", "engine_id", row.EngineID, "why", why)
		now, err := p.s.store.Engine(ctx, row.ProductID, row.UserID)
		if err == nil {
			// A claim since then has taken the row away, and a claim from now on
			// makes this fail.
			_, err = p.s.Destroy(ctx, &Caller{Product: &registry.Product{ProductID: registry.WarmProduct, Slug: actorSystem}, Engine: now, UserID: now.UserID})
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, registry.ErrNotFound) && !overtaken(err) {
			p.s.log.Warn("cannot remove a warm engine; trying again", "engine_id", row.EngineID, "error", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.told, row.EngineID)
	})
}

// labelAll labels the jobs of engines that were warm when that was left undone.
func (p *warmPool) labelAll(ctx context.Context) {
	for _, row := range p.s.mirror.All() {
		if row.Unlabelled && row.Op == nil && ctx.Err() == nil {
			if err := p.s.label(ctx, row); err != nil && !overtaken(err) {
				p.s.log.Debug("cannot label a job; trying again", "engine_id", row.EngineID, "error", err)
			}
		}
	}
}

// label says in the job of an engine that was warm whose it is now. Where
// somebody else changes the job or the row meanwhile, that stands.
func (s *Scheduler) label(ctx context.Context, row *registry.Engine) error {
	job, err := s.cluster.Job(ctx, row.JobID())
	if err != nil {
		return err
	}
	jobs.Label(job, jobs.Engine{EngineID: row.EngineID, ProductID: row.ProductID, ProductName: row.ProductSlug, UserID: row.UserID})
	if _, err := s.cluster.Register(ctx, job, *job.JobModifyIndex); err != nil {
		return err
	}
	row = row.Clone()
	row.Unlabelled = false
	return s.store.Update(ctx, row)
}

// WarmEngines is how many engines wait for a user, as far as this replica knows.
func (s *Scheduler) WarmEngines() int {
	return len(s.mirror.In(registry.WarmProduct, registry.Running))
}
