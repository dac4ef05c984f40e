package scheduler

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
)

// keyReaders is how many keys are read from Vault concurrently.
const keyReaders = 16

// lostKeys returns the rows whose key Vault no longer has.
func (s *Scheduler) lostKeys(ctx context.Context) ([]*engine.Row, error) {
	rows, _, err := s.store.Engines(ctx)
	if err != nil {
		return nil, err
	}
	lost := make([]*engine.Row, len(rows))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(keyReaders)
	for i, row := range rows {
		if row.KeyVersion == 0 || row.State == engine.Destroying || row.Reason == engine.ReasonBrainMissing {
			continue
		}
		work.Go(func() error {
			has, err := s.vault.HasKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
			if err == nil && !has {
				lost[i] = row
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(lost, func(row *engine.Row) bool { return row == nil }), nil
}

// Rekeyed is the result of Rekey.
type Rekeyed struct {
	// Rekeyed counts engines that have and accept a new key, AtStart those that get one at
	// their next start because they do not run, Failed those that did not confirm theirs,
	// and Left those for the next call.
	Rekeyed, AtStart, Failed, Left int
}

const (
	// rekeyFor is how long one call of Rekey starts further engines, and rekeyers how many
	// are in progress concurrently.
	rekeyFor = 20 * time.Second
	rekeyers = 4
)

// Rekey gives new keys to engines whose key Vault has lost, a few concurrently, for a
// limited time; a repeated call continues. Products get the new keys by admit.
func (s *Scheduler) Rekey(ctx context.Context) (Rekeyed, error) {
	if err := s.mayBegin(ctx, "nomad", "vault"); err != nil {
		return Rekeyed{}, err
	}
	lost, err := s.lostKeys(ctx)
	if err != nil {
		return Rekeyed{}, err
	}
	var done Rekeyed
	results := make([]error, len(lost))
	var work errgroup.Group
	work.SetLimit(rekeyers)
	until := time.Now().Add(rekeyFor)
	for i, row := range lost {
		switch {
		case row.ProductID == engine.WarmProduct: // it is replaced
			continue
		case row.State != engine.Running:
			done.AtStart++
			continue
		case row.Op != nil || time.Now().After(until):
			done.Left++
			continue
		}
		work.Go(func() error {
			results[i] = s.rekey(ctx, row)
			if results[i] == nil {
				results[i] = errRekeyed
			}
			return nil
		})
	}
	_ = work.Wait() // the errors are counted
	for i, err := range results {
		switch {
		case errors.Is(err, errRekeyed):
			done.Rekeyed++
		case err != nil:
			done.Failed++
			s.log.Warn("an engine did not accept its new key", "engine_id", lost[i].EngineID, "error", err)
		}
	}
	return done, s.store.RequestReconcile(ctx)
}

var errRekeyed = errors.New("scheduler: it has a new key")

func (s *Scheduler) rekey(ctx context.Context, row *engine.Row) error {
	o, err := s.propose(ctx, row.Clone(), proposal{
		kind: engine.OpRotateKey, action: audit.ActionRotateKey, actor: adminActor(ctx), details: map[string]any{"why": "its key was lost"},
		backends: []string{"nomad", "vault"}, prepare: func(*engine.Row) error { return nil },
	})
	if err == nil {
		_, err = o.Wait(ctx)
	}
	return err
}
