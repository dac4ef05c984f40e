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

// MaxIdempotencyKey is the maximum length of an Idempotency-Key.
const MaxIdempotencyKey = 255

// replay returns the result of a provision whose Idempotency-Key was used before: the
// engine that the first call created, after its end. Neither an engine nor an error: the
// key is new, and ref must be written with the claim.
func (s *Scheduler) replay(ctx context.Context, caller *Caller, o ProvisionOptions) (made *engine.Row, ref *engine.IdempotencyRef, err error) {
	if o.IdempotencyKey == "" {
		return nil, nil, nil
	}
	ref = &engine.IdempotencyRef{
		Key: digest(o.IdempotencyKey), Body: o.body(caller.UserID), CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
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
				// The row was deleted between the two reads, and the record with it.
				if !pause.For(ctx, pollEvery) {
					return nil, nil, ctx.Err()
				}
				continue
			}
			return nil, nil, engine.Errorf(engine.EngineDestroyed, "the engine that was created with this Idempotency-Key has been destroyed")
		case row.Idempotency != nil && row.Op != nil:
			if err := s.awaitOperation(ctx, row); err != nil {
				return nil, nil, err
			}
			continue
		case record.URL == "": // it ended just now
			continue
		}
		first := row.Clone()
		first.State = engine.Running // as in the first response
		if first.URL == "" {
			first.URL = record.URL
		}
		return first, nil, nil
	}
	return nil, nil, engine.BusyWith(engine.OpProvision)
}

// body identifies a request for an engine.
func (o *ProvisionOptions) body(userID string) string {
	if o.from == nil {
		return digest(userID, o.Image)
	}
	return digest("fork", userID, o.from.UserID, o.fromAsked)
}

// lookUp reads the record of a key. nil: there is no valid record, and ref creates one.
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

// recall returns the result of a change whose Idempotency-Key was used before, and waits
// for it while it is in progress. Neither a record nor an error: the key is new, and ref
// must be written into the row with the operation; nil: the caller sent no key.
func (s *Scheduler) recall(ctx context.Context, caller *Caller, kind engine.OpKind) (done *registry.Idempotency, ref *engine.IdempotencyRef, err error) {
	if caller.IdempotencyKey == "" {
		return nil, nil, nil
	}
	ref = &engine.IdempotencyRef{
		Key: digest(caller.IdempotencyKey), Body: digest(string(kind), caller.UserID, caller.of), Kind: kind, Fresh: true, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
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

// again returns the engine in the state of the first response to a change, with its other
// current data. ENGINE_DESTROYED: it has been destroyed since.
func (s *Scheduler) again(ctx context.Context, caller *Caller, done *registry.Idempotency, first engine.State) (*engine.Row, error) {
	if err := caller.refresh(ctx, s); err != nil {
		return nil, err
	}
	if caller.Engine == nil || caller.Engine.EngineID != done.EngineID {
		return nil, engine.Errorf(engine.EngineDestroyed, "the engine that this Idempotency-Key was used for has been destroyed")
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
	b, _ := json.Marshal(parts) // the JSON of strings is unambiguous, and encoding never fails
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
