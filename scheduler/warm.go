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
	"github.com/septemberai/orch/scheduler/operation"
)

const (
	// warmEvery is the interval at which the leader checks whether warm engines are
	// missing.
	warmEvery = 2 * time.Second
	// warmQuiet is how long there must be no claim before new warm engines are created, and
	// claimed ones labelled.
	warmQuiet = 250 * time.Millisecond
	// warmMakers is how many warm engines are created or destroyed concurrently.
	warmMakers = 4
	// warmProbe limits the last probe of warm engines before one is handed out. If none
	// responds, warmPatience limits a second probe, because on a machine that stalls for a
	// moment a boot would take longer.
	warmProbe, warmPatience = 250 * time.Millisecond, time.Second
	// warmLabels is how many jobs of claimed engines are labelled concurrently.
	warmLabels = 2
)

// warmKind is a kind of warm engine.
type warmKind struct {
	image     string
	resources engine.Resources
	nodePool  string
	proofPath string
}

// kindOf returns the kind of a product's engines.
func (s *Scheduler) kindOf(p *engine.Product, image string) warmKind {
	return warmKind{image, s.resources(p.Policy), p.Policy.NodePool, p.Policy.KeyProofPath}
}

// warmPool keeps engines that run, are healthy, and have no user. Each has its own
// identity, brain and key from its creation; nobody else knows the key. A warm engine has a
// row like any other, of the product registry.WarmProduct, and the same operations create,
// watch and remove it. A claim gives the row to a user in one transaction; an engine that
// was handed out never comes back.
type warmPool struct {
	s       *Scheduler
	trigger chan struct{} // an engine was claimed
	claimed atomic.Int64  // time of the last claim, as time.Time.UnixNano
	slots   chan struct{} // one per warm engine being created or destroyed
	work    sync.WaitGroup

	labels chan struct{} // one per job being labelled for a claim

	mu   sync.Mutex
	held map[string]bool // engine_ids that this replica is about to claim or to remove
	told map[string]bool // failed engines that were counted
}

func newWarmPool(s *Scheduler) *warmPool {
	return &warmPool{
		s: s, trigger: make(chan struct{}, 1), slots: make(chan struct{}, warmMakers), labels: make(chan struct{}, warmLabels), held: map[string]bool{},
		told: map[string]bool{},
	}
}

// fingerprint identifies a kind of engine with the current job file and settings.
func (p *warmPool) fingerprint(k warmKind) string {
	parts := []string{p.s.template.Load().Fingerprint(), k.image, strconv.Itoa(k.resources.CPUMHz), strconv.Itoa(k.resources.MemoryMB), k.nodePool}
	if k.proofPath != "" {
		parts = append(parts, k.proofPath)
	}
	if k.resources.BrainMB > 0 {
		parts = append(parts, "brain_mb", strconv.Itoa(k.resources.BrainMB))
	}
	if k.resources.Isolation != "" {
		parts = append(parts, "isolation", k.resources.Isolation)
	}
	return digest(parts...)[:16]
}

// ready reports whether a warm engine may be handed out, according to the view. Consul's
// check does not count, because a check during a slow boot leaves it failed until the next
// one; a claim probes the engine itself. An engine whose secret names no owner yet (an
// earlier version of the service wrote it) may not be handed out.
func (p *warmPool) ready(row *engine.Row) bool {
	return row.State == engine.Running && row.Op == nil && row.KeyID != "" && !p.s.nodeSilent(row.NodeID)
}

// usable returns the ready warm engines of a kind.
func (p *warmPool) usable(fingerprint string) (rows []*engine.Row) {
	for _, row := range p.s.mirror.In(engine.WarmProduct, engine.Running) {
		if row.Warm == fingerprint && p.ready(row) {
			rows = append(rows, row)
		}
	}
	return rows
}

// newestKeys returns the version of the provider keys that a process started now gets. An
// engine with older ones is not handed out. 0: engines get none.
func (p *warmPool) newestKeys(ctx context.Context) (int, error) {
	if len(p.s.opts.ProviderKeys) == 0 {
		return 0, nil
	}
	return p.s.vault.EnvVersion(ctx)
}

// hold reserves, within this replica, a warm engine that responds, has the newest provider
// keys and runs the current digest of its image; nil: there is none. The caller must
// release it.
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

// answers reserves one of some warm engines that responds to a probe within a time, or, if
// its node is out of reach, whose check in Consul passes; nil: none does. Each but the last
// gets half of the remaining time, so that one that hangs does not prevent probes of the
// others.
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
		if p.s.detector.Serves(ctx, processOf(row), left) == nil {
			return row
		}
		p.release(row)
	}
	return nil
}

// reserve prevents other goroutines of this replica from claiming or removing a warm engine
// until it is released; false: it is reserved already.
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

// claim gives the caller a warm engine of the kind that wanted names; false: there is none,
// and nothing was done.
func (p *warmPool) claim(ctx context.Context, caller *Caller, wanted *engine.Row, timings *operation.Timings) (*engine.Row, bool, error) {
	for range maxClaims {
		at := time.Now()
		fingerprint := p.fingerprint(p.s.kindOf(caller.Product, wanted.Image)) // the policy may have changed
		warm, err := p.hold(ctx, fingerprint, wanted.Image)
		if warm == nil {
			return nil, false, err
		}
		timings.Since(operation.TimingProbing, at)
		row := warm.Clone()
		row.ProductID, row.ProductSlug, row.UserID = wanted.ProductID, wanted.ProductSlug, wanted.UserID
		row.CreatedAt, row.Idempotency = wanted.CreatedAt, wanted.Idempotency
		row.RunningSince, row.LastHealthAt = time.Now().UTC(), time.Now().UTC()
		row.Warm, row.Unlabelled, row.Restarts = "", true, nil
		// The key belongs to the user when its secret says so, which the operation does.
		op := *wanted.Op
		op.Step, op.KeyVersion, op.KeyID = stepOwn, warm.KeyVersion, warm.KeyID
		row.State, row.Op, row.KeyVersion, row.KeyID = engine.Provisioning, &op, 0, ""
		at = time.Now()
		err = p.s.store.ClaimWarm(ctx, caller.Product, row, warm)
		timings.Since(operation.TimingClaim, at)
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
			return nil, false, p.s.ops.Unanswered(row, err)
		}
		// Another replica has claimed the engine, or the product has changed.
		if err := caller.refresh(ctx, p.s); err != nil {
			return nil, false, err
		}
	}
	return nil, false, nil
}

// handedOut replaces a claimed engine, and labels its job. Both wait until there are no
// more claims, because they use the time of the node and of Nomad's servers.
func (p *warmPool) handedOut(row *engine.Row) {
	p.claimed.Store(time.Now().UnixNano())
	select {
	case p.trigger <- struct{}{}:
	default:
	}
	row = row.Clone()
	p.s.ops.Background(func(ctx context.Context) {
		p.awaitQuiet(ctx)
		select {
		case p.labels <- struct{}{}:
			defer func() { <-p.labels }()
			_ = p.s.label(ctx, row) // otherwise the leader does it later
		case <-ctx.Done():
		}
	})
}
