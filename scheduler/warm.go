package scheduler

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/fault"
	"github.com/septemberai/orch/registry"
)

const (
	// warmEvery is how often the leader looks whether warm engines are missing.
	warmEvery = 2 * time.Second
	// warmQuiet is how long nobody claims one before new ones are made, and those
	// that were claimed are labelled.
	warmQuiet = 250 * time.Millisecond
	// warmMakers is how many warm engines are made, or removed, at a time.
	warmMakers = 4
	// warmProbe bounds the last look at warm engines before one is handed out. Where none
	// answers, warmPatience bounds a second one: on a machine that stalls for a moment a
	// boot would take longer.
	warmProbe, warmPatience = 250 * time.Millisecond, time.Second
	// warmLabels is how many jobs of claimed engines are labelled at a time.
	warmLabels = 2
	// labelEvery is how often jobs that still say "warm" are looked for.
	labelEvery = 10 * time.Second
)

// warmKind is what a warm engine can become.
type warmKind struct {
	image     string
	resources engine.Resources
	nodePool  string
	proofPath string
}

// kindOf is what kind of engine a product's are.
func (s *Scheduler) kindOf(p *engine.Product, image string) warmKind {
	return warmKind{image, s.resources(p.Policy), p.Policy.NodePool, p.Policy.KeyProofPath}
}

// warmPool keeps engines that run, are healthy, and wait for a user. Each has an
// identity, a brain and a key of its own from birth; the key was told to nobody.
// A warm engine has a row as any other, of the product registry.WarmProduct: it
// is made, watched and removed by the same operations. A claim gives the row to
// a user in one transaction; what was handed out never comes back.
type warmPool struct {
	s       *Scheduler
	trigger chan struct{} // one was claimed
	claimed atomic.Int64  // when, as time.Time.UnixNano
	slots   chan struct{} // one per warm engine being made or removed
	work    sync.WaitGroup

	labels chan struct{} // one per job being labelled for a claim

	mu   sync.Mutex
	held map[string]bool // engine_ids that this replica is about to claim, or to remove
	told map[string]bool // failed engines that are counted
}

func newWarmPool(s *Scheduler) *warmPool {
	return &warmPool{
		s: s, trigger: make(chan struct{}, 1), slots: make(chan struct{}, warmMakers), labels: make(chan struct{}, warmLabels), held: map[string]bool{},
		told: map[string]bool{},
	}
}

// fingerprint names a kind of engine, of the job file and the settings of today.
func (p *warmPool) fingerprint(k warmKind) string {
	parts := []string{p.s.template.Load().Fingerprint(), k.image, strconv.Itoa(k.resources.CPUMHz), strconv.Itoa(k.resources.MemoryMB), k.nodePool}
	if k.proofPath != "" {
		parts = append(parts, k.proofPath)
	}
	if k.resources.BrainMB > 0 {
		parts = append(parts, "brain_mb", strconv.Itoa(k.resources.BrainMB))
	}
	return digest(parts...)[:16]
}

// ready says whether a warm engine may be handed out, as far as the view knows.
// Consul's check is no part of it: one that fell into a slow boot stands as failed
// until the next. Whoever claims an engine asks it. One whose secret names no owner
// yet (a version of the service wrote it that knew none) is nobody's to hand out.
func (p *warmPool) ready(row *engine.Row) bool {
	return row.State == engine.Running && row.Op == nil && row.KeyID != "" && !p.s.nodeSilent(row.NodeID)
}

// usable are the ready warm engines of a kind.
func (p *warmPool) usable(fingerprint string) (rows []*engine.Row) {
	for _, row := range p.s.mirror.In(engine.WarmProduct, engine.Running) {
		if row.Warm == fingerprint && p.ready(row) {
			rows = append(rows, row)
		}
	}
	return rows
}

// newestKeys is the version of the provider keys that a process started now gets:
// an engine with older ones is not handed out. 0: engines get none.
func (p *warmPool) newestKeys(ctx context.Context) (int, error) {
	if len(p.s.opts.ProviderKeys) == 0 {
		return 0, nil
	}
	return p.s.vault.EnvVersion(ctx)
}

// hold reserves, within this replica, a warm engine that answers, has the newest
// provider keys and runs what its image means now; nil: there is none. It is to be
// released.
func (p *warmPool) hold(ctx context.Context, fingerprint, image string) (*engine.Row, error) {
	usable := p.usable(fingerprint)
	if len(usable) > 0 && p.s.opts.Digests != nil {
		digest := p.s.digestOf(ctx, image)
		usable = slices.DeleteFunc(usable, func(row *engine.Row) bool { return anotherImage(row, digest) })
	}
	if len(usable) == 0 {
		return nil, nil
	}
	keys, err := p.newestKeys(ctx)
	if err != nil {
		return nil, err
	}
	usable = slices.DeleteFunc(usable, func(row *engine.Row) bool { return row.EnvVersion < keys })
	for _, within := range []time.Duration{warmProbe, warmPatience} {
		if row := p.answers(ctx, usable, within); row != nil {
			return row, nil
		}
	}
	return nil, nil
}

// answers reserves one of some warm engines that says within a time that it can serve;
// nil: none does. Each but the last is asked for half of the time that is left, so that one
// that hangs hides no other.
func (p *warmPool) answers(ctx context.Context, rows []*engine.Row, within time.Duration) *engine.Row {
	until := time.Now().Add(within)
	for i, row := range shuffled(rows) {
		left := time.Until(until)
		if i+1 < len(rows) {
			left /= 2
		}
		if left <= 0 || !p.reserve(row) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, left)
		err := p.s.probe.Health(ctx, row.URL)
		cancel()
		if err == nil {
			return row
		}
		p.release(row)
	}
	return nil
}

// reserve keeps a warm engine from being claimed or removed elsewhere in this
// replica until it is released; false: it is reserved already.
func (p *warmPool) reserve(row *engine.Row) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[row.EngineID] {
		return false
	}
	p.held[row.EngineID] = true
	return true
}

func (p *warmPool) release(row *engine.Row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, row.EngineID)
}

// claim gives the caller a warm engine of the kind that wanted names; false:
// there is none, and nothing was done.
func (p *warmPool) claim(ctx context.Context, caller *Caller, wanted *engine.Row, timings *timings) (*engine.Row, bool, error) {
	fingerprint := p.fingerprint(p.s.kindOf(caller.Product, wanted.Image))
	for range maxClaims {
		at := time.Now()
		warm, err := p.hold(ctx, fingerprint, wanted.Image)
		if warm == nil {
			return nil, false, err
		}
		timings.since(timingProbing, at)
		row := warm.Clone()
		row.ProductID, row.ProductSlug, row.UserID = wanted.ProductID, wanted.ProductSlug, wanted.UserID
		row.CreatedAt, row.Idempotency = wanted.CreatedAt, wanted.Idempotency
		row.RunningSince, row.LastHealthAt = time.Now().UTC(), time.Now().UTC()
		row.Warm, row.Unlabelled, row.Restarts = "", true, nil
		// The key is the user's when its secret says so: the operation sees to that.
		op := *wanted.Op
		op.Step, op.KeyVersion, op.KeyID = stepOwn, warm.KeyVersion, warm.KeyID
		row.State, row.Op, row.KeyVersion, row.KeyID = engine.Provisioning, &op, 0, ""
		at = time.Now()
		err = p.s.store.ClaimWarm(ctx, caller.Product, row, warm)
		timings.since(timingClaim, at)
		p.release(warm)
		switch {
		case err == nil:
			fault.Hit(pointWarmClaimed)
			return row, true, nil
		case errors.Is(err, registry.ErrMoved):
			if err := p.s.guard.Again(ctx); err != nil {
				return nil, false, err
			}
		case !errors.Is(err, registry.ErrConflict):
			return nil, false, p.s.unanswered(row, err)
		}
		// The engine went to another replica, or the product changed.
		if err := caller.refresh(ctx, p.s); err != nil {
			return nil, false, err
		}
	}
	return nil, false, nil
}

// handedOut has an engine that was claimed replaced, and its job labelled. Both are
// left until claims pause: what they do in Nomad takes the node's and the servers'
// time.
func (p *warmPool) handedOut(row *engine.Row) {
	p.claimed.Store(time.Now().UnixNano())
	select {
	case p.trigger <- struct{}{}:
	default:
	}
	row = row.Clone()
	p.s.background(func(ctx context.Context) {
		p.awaitQuiet(ctx)
		select {
		case p.labels <- struct{}{}:
			defer func() { <-p.labels }()
			_ = p.s.label(ctx, row) // else the leader does it later
		case <-ctx.Done():
		}
	})
}
