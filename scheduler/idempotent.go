package scheduler

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// MaxIdempotencyKey is the longest Idempotency-Key (SPEC section 2).
const MaxIdempotencyKey = 255

// replay answers a provision whose Idempotency-Key was seen before: with the
// engine that the first call made, however far that has come. A nil engine and
// no error: the key is new, and ref goes into the claim.
func (s *Scheduler) replay(ctx context.Context, caller *Caller, o ProvisionOptions) (made *engine.Row, ref *engine.IdempotencyRef, err error) {
	if o.IdempotencyKey == "" {
		return nil, nil, nil
	}
	ref = &engine.IdempotencyRef{
		Key: digest(o.IdempotencyKey), Body: digest(caller.UserID, o.Image), CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	for range maxClaims {
		record, err := s.lookUp(ctx, caller.Product.ProductID, ref)
		switch {
		case err != nil:
			return nil, nil, err
		case record == nil:
			return nil, ref, nil
		}
		if err := caller.refresh(ctx, s); err != nil {
			return nil, nil, err
		}
		row := caller.Engine
		switch {
		case row == nil || row.EngineID != record.EngineID:
			if record.URL == "" {
				// The row went between the two reads, and the record with it.
				if !pause.For(ctx, pollEvery) {
					return nil, nil, ctx.Err()
				}
				continue
			}
			return nil, nil, engine.Errorf(engine.EngineDestroyed, "the engine that this Idempotency-Key made is gone")
		case row.Idempotency != nil && row.Op != nil:
			if err := s.awaitOperation(ctx, row); err != nil {
				return nil, nil, err
			}
			continue
		case record.URL == "": // answered in this moment
			continue
		}
		first := row.Clone()
		first.State = engine.Running // the first answer again
		if first.URL == "" {
			first.URL = record.URL
		}
		return first, nil, nil
	}
	return nil, nil, engine.BusyWith(engine.OpProvision)
}

// lookUp finds the record of a key. nil: there is none that counts, and ref makes one.
// IDEMPOTENCY_KEY_REUSED.
func (s *Scheduler) lookUp(ctx context.Context, productID string, ref *engine.IdempotencyRef) (*registry.Idempotency, error) {
	record, err := s.store.Idempotency(ctx, productID, ref.Key)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case record.Expired(time.Now()):
		ref.Expired = record.Index
		return nil, nil
	case record.Body != ref.Body:
		return nil, engine.Errorf(engine.IdempotencyReused, "this Idempotency-Key was used for another request")
	}
	return record, nil
}

// recall finds what became of a change whose Idempotency-Key was seen before, and waits
// for it while it is under way. Neither a record nor an error: the key is new, and ref
// goes into the row with the operation; nil: the caller sent none.
func (s *Scheduler) recall(ctx context.Context, caller *Caller, kind engine.OpKind) (done *registry.Idempotency, ref *engine.IdempotencyRef, err error) {
	if caller.IdempotencyKey == "" {
		return nil, nil, nil
	}
	ref = &engine.IdempotencyRef{
		Key: digest(caller.IdempotencyKey), Body: digest(string(kind), caller.UserID, ""), Kind: kind, Fresh: true, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	for range maxClaims {
		record, err := s.lookUp(ctx, caller.Product.ProductID, ref)
		switch {
		case err != nil:
			return nil, nil, err
		case record == nil:
			return nil, ref, nil
		case record.Done:
			return record, nil, nil
		}
		if err := caller.refresh(ctx, s); err != nil {
			return nil, nil, err
		}
		row := caller.Engine
		switch {
		case row == nil || row.Op == nil || row.Idempotency == nil || row.Idempotency.Key != ref.Key:
			if !pause.For(ctx, pollEvery) { // it ended between the two reads
				return nil, nil, ctx.Err()
			}
		case row.State == engine.Destroying:
			_, err = s.awaitDestroyed(ctx, row)
		default:
			err = s.awaitOperation(ctx, row)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, engine.BusyWith(kind)
}

// again is the engine as the first answer to a change had it, with what else it has now.
// ENGINE_DESTROYED: it is gone since.
func (s *Scheduler) again(ctx context.Context, caller *Caller, done *registry.Idempotency, first engine.State) (*engine.Row, error) {
	if err := caller.refresh(ctx, s); err != nil {
		return nil, err
	}
	if caller.Engine == nil || caller.Engine.EngineID != done.EngineID {
		return nil, engine.Errorf(engine.EngineDestroyed, "the engine that this Idempotency-Key was used for is gone")
	}
	e := caller.Engine.Clone()
	if first != "" {
		e.State = first
	}
	if e.URL == "" {
		e.URL = done.URL
	}
	return e, nil
}

func digest(parts ...string) string {
	b, _ := json.Marshal(parts) // strings always marshal, and unambiguously
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
