package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

const (
	// savedWithin limits a backup of Consul. rebuiltWithin limits the time from its restore
	// until the registry is complete again: the lock of the former leader is restored too,
	// and must expire.
	savedWithin   = 20 * time.Second
	rebuiltWithin = 90 * time.Second
)

// save makes a backup of Consul while callers continue.
func (in *injector) save(ctx context.Context) error {
	in.backup = nil
	return eventually(ctx, savedWithin, func() error {
		var errs []error
		for _, c := range in.watch.clients {
			backup, _, err := c.Snapshot().Save((&consul.QueryOptions{}).WithContext(ctx))
			if err == nil {
				in.backup, err = io.ReadAll(backup)
				err = errors.Join(err, backup.Close())
			}
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// restore restores Consul from its backup while the service runs, and waits until the
// registry is complete again. Callers pause meanwhile: responses from before the service
// notices the restore are not linearizable, and nothing is promised about them. Engines
// that no longer exist are destroyed, as an operator would do.
func (in *injector) restore(ctx context.Context) error {
	if in.backup == nil {
		return nil
	}
	in.load.still.Lock()
	defer in.load.still.Unlock()
	in.watch.restoring(true)
	defer in.watch.restoring(false)
	began := time.Now().UTC()
	err := eventually(ctx, savedWithin, func() error {
		var errs []error
		for _, c := range in.watch.clients {
			err := c.Snapshot().Restore((&consul.WriteOptions{}).WithContext(ctx), bytes.NewReader(in.backup))
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("restore Consul: %w", err)
	}
	var last *registry.Recovery
	err = eventually(ctx, rebuiltWithin, func() (err error) {
		last, err = in.rebuilt(ctx, began)
		return err
	})
	if err != nil {
		return fmt.Errorf("the registry is not rebuilt: %w", err)
	}
	in.log("         the registry was rebuilt after %s: %+v", time.Since(began).Round(100*time.Millisecond), *last)
	return in.forget(ctx)
}

// rebuilt returns the recovery that ended after a given time.
func (in *injector) rebuilt(ctx context.Context, after time.Time) (*registry.Recovery, error) {
	var errs []error
	for _, c := range in.watch.clients {
		pair, _, err := c.KV().Get(prefix+"deployment", (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err != nil || pair == nil {
			errs = append(errs, fmt.Errorf("no record of the deployment: %w", err))
			continue
		}
		d := new(registry.Deployment)
		if err := json.Unmarshal(pair.Value, d); err != nil {
			return nil, err
		}
		if d.State != registry.RegistryOK || d.Last == nil || d.Last.EndedAt.Before(after) {
			return nil, fmt.Errorf("it is %s (%s), the last recovery was %+v", d.State, d.Why, d.Last)
		}
		return d.Last, nil
	}
	return nil, errors.Join(errs...)
}

// forget destroys the engines that were destroyed after the backup.
func (in *injector) forget(ctx context.Context) error {
	return eventually(ctx, time.Minute, func() error {
		s, err := in.watch.look(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, e := range s.rows {
			if e.State == engine.Destroying { // as at the time of the backup
				errs = append(errs, fmt.Errorf("engine %s is being destroyed once more", e.EngineID))
			}
			if e.Reason != "brain_missing" {
				continue
			}
			for _, p := range in.rig.products {
				if p.ProductID == e.ProductID {
					api := &client.Client{BaseURL: in.rig.urls[replicaName(0)], PlatformKey: p.PlatformAPIKey, HTTP: in.rig.http}
					_, err := api.Destroy(ctx, e.UserID)
					errs = append(errs, err, fmt.Errorf("engine %s does not exist, but its row does", e.EngineID))
				}
			}
		}
		return errors.Join(errs...)
	})
}
