package scheduler

import (
	"context"
	"errors"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/operation"
)

// make begins to create one warm engine, and reports whether it has.
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
			if made, err = o.Wait(ctx); made != nil && made.State == engine.Failed {
				engineID = made.EngineID // tend finds it, too
			}
		}
		switch {
		case err == nil && before != nil:
			p.recovered(ctx, before)
		case errors.Is(err, registry.ErrConflict):
			// Another replica has claimed the volume, or leads now.
		case err != nil && ctx.Err() == nil:
			p.s.log.Warn("cannot create a warm engine; retrying later", "image", kind.image, "error", err)
			p.failed(ctx, fingerprint, engineID, AsError(err).Message)
		}
	})
	return <-began
}

// place finds a node with capacity for a warm engine and one more of its size: the last
// capacity of a node is for users. CAPACITY_EXHAUSTED: there is none.
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
			return nil, engine.Errorf(engine.CapacityExhausted, "no node has enough capacity for a warm engine and one more of its size")
		}
		if hasRoom(p.withPlanned(place.node), p.s.needOf(kind.resources), 2) {
			return place, nil
		}
		p.s.pool.Release(place.pooled)
		tried[place.node.ID] = true
	}
}

// withPlanned subtracts from a node's capacity what warm engines need that are being
// created there and that Nomad has not placed yet.
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
func (p *warmPool) begin(ctx context.Context, fingerprint string, kind warmKind) (*operation.Operation, error) {
	s := p.s
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return nil, err
	}
	place, err := p.place(ctx, kind)
	if err != nil {
		return nil, err
	}
	s.foresee(kind.image)
	op := s.ops.NewOperation(ctx, engine.OpProvision, audit.ActionProvision, "")
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
	launched, _ := s.ops.Reserve(op.ID)
	defer launched()
	if err := s.store.CreateWarm(ctx, row, place.pooled); err != nil {
		s.pool.Release(place.pooled)
		if err = s.ops.Unanswered(row, err); !errors.Is(err, operation.ErrUnanswered) {
			s.abandon(ctx, op.AuditID, op.BeganAt, err)
		}
		return nil, err
	}
	s.pool.Claimed(place.pooled)
	return s.ops.Launch(row), nil
}

// failed counts an engine that could not be created, or that failed, once.
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

// backOff stops the creation of a kind for a while, which doubles with each failed attempt.
// Failures at the same time count as one.
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
		p.s.log.Debug("cannot record a backoff of warm engines", "error", err)
	}
}

// recovered removes a backoff.
func (p *warmPool) recovered(ctx context.Context, b *registry.WarmBackoff) {
	if err := p.s.store.DeleteWarmBackoff(ctx, b); err != nil && !errors.Is(err, registry.ErrConflict) && ctx.Err() == nil {
		p.s.log.Debug("cannot delete a backoff of warm engines", "error", err)
	}
}
