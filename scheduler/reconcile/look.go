package reconcile

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/secrets"
)

// staleNodes is the maximum age of the view of the nodes for a pass: the event stream is
// never silent for longer (see the cluster's feed).
const staleNodes = 2 * time.Minute

// look reads the world. What cannot be read is missing in it.
func (r *Reconciler) look(ctx context.Context, suspects map[string]suspect, throttle cluster.Throttle) *world {
	w := &world{
		now: time.Now().UTC(), deployment: r.d.Deployment, deploymentID: r.d.Guard.ID(), grace: r.d.Grace,
		suspects: suspects, missing: map[string]error{}, silent: map[string]bool{}, awake: map[string]bool{}, quarantined: map[string]bool{}, owners: map[string]*secrets.EngineKey{},
	}
	if record := r.d.Guard.Current(); record != nil {
		w.keysLost = record.KeysLost != nil
	}
	if age := r.d.Nomad.Age(); age > staleNodes {
		w.missing[listNodes] = cluster.ErrUnavailable
	}
	type list struct {
		name string
		read func() error
	}
	// The lists are read one after another, so that no store has to serve two concurrently,
	// and other calls are hardly affected.
	for _, l := range []list{
		{listJobs, func() (err error) { w.jobs, err = r.d.Nomad.Jobs(ctx, enginePrefix, throttle); return err }},
		{listVolumes, func() (err error) { w.volumes, err = r.d.Nomad.Volumes(ctx, throttle); return err }},
		{listVariables, func() (err error) { w.variables, err = r.d.Nomad.KeyHashes(ctx, enginePrefix, throttle); return err }},
		{listKeys, func() (err error) { w.keys, err = r.d.Vault.EngineIDs(ctx); return err }},
		{listOrphans, func() (err error) { w.orphans, err = r.d.Store.Orphans(ctx); return err }},
		{listPool, func() (err error) { w.pooled, err = r.d.Store.PoolIDs(ctx); return err }},
		{listRows, func() (err error) { w.rows, w.unreadable, err = r.d.Store.Engines(ctx); return err }},
		{listUnreachableVolumes, func() (err error) {
			w.unreachable, w.damagedVolumes, err = r.d.Store.UnreachableVolumes(ctx)
			return err
		}},
		{listIndexes, func() error { return r.readIndexes(ctx, w) }},
		{listQuarantine, func() (err error) { w.quarantine, err = r.d.Store.Quarantine(ctx); return err }},
		{listQuotas, func() (err error) { w.quotas, err = r.d.Store.Quotas(ctx); return err }},
		{listOwners, func() error { return r.readOwners(ctx, w) }},
	} {
		if err := l.read(); err != nil {
			w.missing[l.name] = err
		}
	}
	r.lookForLost(ctx, w, throttle)
	for _, q := range w.quarantine {
		w.quarantined[q.EngineID] = true
	}
	for _, row := range w.rows {
		if row.Frozen != nil && r.d.Checks.Passes(row.Frozen.AllocID) {
			w.awake[row.EngineID] = true
		}
	}
	for _, v := range w.volumes {
		w.silent[v.NodeID] = r.d.Engines.NodeSilent(v.NodeID)
	}
	for _, j := range w.jobs {
		for _, node := range j.Live {
			w.silent[node] = r.d.Engines.NodeSilent(node)
		}
	}
	return w
}

// readIndexes compares the indexes with the rows of products and engines.
func (r *Reconciler) readIndexes(ctx context.Context, w *world) error {
	products, damaged, err := r.d.Store.Products(ctx)
	if err != nil {
		w.missing[listProducts] = err
		return err
	}
	w.damagedProducts = damaged
	if !w.read(listRows) {
		return nil // nothing is decided with them
	}
	indexes, err := r.d.Store.Indexes(ctx)
	if err != nil {
		return err
	}
	w.indexed = map[string][]string{}
	for _, u := range w.unreadable {
		w.indexed[u.Key] = indexes.EnginesOf(u)
	}
	w.faults = indexes.Faults(products, damaged, w.rows)
	return nil
}

// readOwners reads the secrets of the engines that the registry does not have: in a
// complete registry there is hardly one. While Vault is known to have gone back in time, it
// also checks the key of every row.
func (r *Reconciler) readOwners(ctx context.Context, w *world) error {
	if !w.read(listKeys, listPool, listRows, listUnreachableVolumes, listQuarantine) {
		return nil // nothing is decided with them
	}
	held := maps.Clone(w.pooled)
	for _, row := range w.rows {
		held[row.EngineID] = true
	}
	for _, g := range w.unreachable {
		held[g.EngineID] = true
	}
	for _, q := range w.quarantine {
		held[q.EngineID] = true
	}
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(recoverers)
	for _, id := range w.keys {
		if held[id] {
			continue
		}
		work.Go(func() error {
			k, err := r.d.Vault.NewestKey(ctx, id)
			if errors.Is(err, secrets.ErrNotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				w.owners[id] = k
			}
			return err
		})
	}
	if w.keysLost {
		w.keysMissing = map[string]bool{}
		for _, row := range w.rows {
			if !wantsKey(row) {
				continue
			}
			work.Go(func() error {
				has, err := r.d.Vault.HasKey(ctx, row.EngineID, row.KeyVersion, row.KeyID)
				if err == nil && !has {
					mu.Lock()
					defer mu.Unlock()
					w.keysMissing[row.EngineID] = true
				}
				return err
			})
		}
	}
	return work.Wait()
}

// lookForLost records the rows whose volume Nomad does not know. The list of volumes is
// older than that of rows, so if one is missing, the volumes are listed again.
func (r *Reconciler) lookForLost(ctx context.Context, w *world, throttle cluster.Throttle) {
	if !w.read(listVolumes, listRows) {
		return
	}
	lost := map[string]string{} // engine_ids by volume
	for _, row := range w.rows {
		if row.VolumeID != "" {
			lost[row.VolumeID] = row.EngineID
		}
	}
	for _, v := range w.volumes {
		delete(lost, v.ID)
	}
	if len(lost) == 0 {
		return
	}
	now, err := r.d.Nomad.Volumes(ctx, throttle)
	if err != nil {
		return // what is unknown is not reported
	}
	for _, v := range now {
		delete(lost, v.ID)
	}
	w.lost = make(map[string]bool, len(lost))
	for _, id := range lost {
		w.lost[id] = true
	}
}
