package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/secrets"
)

// wholePool returns nil if every entry of the pool has its volume, with the right node and
// id, and no volume is in two entries.
func wholePool(s *harness.Stores, prefix string, perNode int) error {
	entries, err := s.Pooled(prefix)
	if err != nil {
		return err
	}
	volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
	if err != nil {
		return err
	}
	named := map[string][]*nomad.HostVolumeStub{}
	for _, v := range volumes {
		named[v.Name] = append(named[v.Name], v)
	}
	count := map[string]int{}
	for _, entry := range entries {
		count[entry.NodeID]++
		theirs := named[engine.JobID(entry.EngineID)]
		if len(theirs) != 1 || theirs[0].ID != entry.VolumeID || theirs[0].NodeID != entry.NodeID {
			return fmt.Errorf("entry %+v has the volumes %+v", entry, theirs)
		}
	}
	if len(count) != 2 {
		return fmt.Errorf("the pool has volumes on %d nodes", len(count))
	}
	for node, n := range count {
		if n != perNode {
			return fmt.Errorf("%d volumes on node %s, want %d", n, node, perNode)
		}
	}
	return nil
}

// testPoolPoints kills the leader between the two halves of creating and of removing a
// pooled volume.
func testPoolPoints(t *testing.T) {
	t.Parallel()
	const prefix = "faults-pool/"
	database, s := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), harness.OpenStores(t, harness.Shared)
	whole := func(what string) {
		t.Helper()
		harness.Eventually(t, what, func() error { return wholePool(s, prefix, 2) })
	}
	p := harness.StartFaulty(t, prefix, database, "kill pool/noted")
	if err := p.AwaitDeath(); err != nil {
		t.Fatal(err)
	}
	s.EndSessions(prefix)
	p = harness.StartFaulty(t, prefix, database, "kill pool/discarded")
	whole("the pool is whole after pool/noted")

	// An entry for engines that run as another user cannot be used.
	keys, _, err := s.Consul.KV().List(prefix+"pool/volumes/", nil)
	if err != nil || len(keys) == 0 {
		t.Fatalf("%d entries, %v", len(keys), err)
	}
	var entry registry.PooledVolume
	if err := json.Unmarshal(keys[0].Value, &entry); err != nil {
		t.Fatal(err)
	}
	entry.Owner = "somebody"
	discarded := entry
	value, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, err := s.Consul.KV().CAS(&consul.KVPair{Key: keys[0].Key, Value: value, ModifyIndex: keys[0].ModifyIndex}, nil); err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}
	if err := p.AwaitDeath(); err != nil {
		t.Fatal(err)
	}
	s.EndSessions(prefix)
	p = harness.StartFaulty(t, prefix, database, "", "ORCH_RECONCILE_INTERVAL_S=2")
	whole("the pool is whole after pool/discarded")
	if pair, _, err := s.Consul.KV().Get(keys[0].Key, nil); err != nil || pair != nil {
		t.Errorf("the discarded entry is there: %v, %v", pair, err)
	}
	// A volume that was deleted manually is not used.
	if keys, _, err = s.Consul.KV().List(prefix+"pool/volumes/", nil); err != nil || len(keys) == 0 {
		t.Fatalf("%d entries, %v", len(keys), err)
	}
	if err := json.Unmarshal(keys[0].Value, &entry); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: entry.VolumeID}, nil); err != nil {
		t.Fatal(err)
	}
	whole("the pool is whole after a volume was deleted manually")
	entry = discarded
	// Its volume is empty and has no owner, so that it may be removed as an orphan.
	if _, _, err := s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: entry.VolumeID}, nil); err != nil {
		t.Log("the discarded volume:", err)
	}
	// A smaller pool removes surplus entries with their volumes.
	p.End()
	s.EndSessions(prefix)
	before, err := s.Pooled(prefix)
	if err != nil {
		t.Fatal(err)
	}
	harness.StartFaulty(t, prefix, database, "", "ORCH_VOLUME_POOL=1")
	harness.Eventually(t, "the pool has one volume per node", func() error {
		if err := wholePool(s, prefix, 1); err != nil {
			return err
		}
		left, err := s.Pooled(prefix)
		if err != nil {
			return err
		}
		for _, v := range before {
			_, _, err := s.Nomad.HostVolumes().Get(v.VolumeID, nil)
			if kept := slices.ContainsFunc(left, func(l registry.PooledVolume) bool { return l.VolumeID == v.VolumeID }); kept != (err == nil) {
				return fmt.Errorf("volume %s: in the pool %t, %w", v.VolumeID, kept, err)
			}
		}
		return nil
	})
}

// pointsOf returns the fault points of a step outside of a provision's plan.
func pointsOf(t *testing.T, step string) []string {
	points := slices.DeleteFunc(scheduler.FaultPoints()["provision"], func(p string) bool { return !strings.Contains(p, "/"+step+"/") })
	if len(points) != 3 {
		t.Fatalf("the step %s has the points %v", step, points)
	}
	return points
}

// testWarmPoints kills the leader while it creates a warm engine, and a replica between the
// claim of one and the response.
func testWarmPoints(t *testing.T) {
	t.Parallel()
	const prefix = "faults-warm/"
	database, s, ctx := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), harness.OpenStores(t, harness.Shared), t.Context()
	start := func(armed string) *harness.Process {
		return harness.StartFaulty(t, prefix, database, armed, "ORCH_WARM_POOL=1")
	}
	warm := func(what string) string {
		t.Helper()
		id := ""
		harness.Eventually(t, what, func() error {
			rows := s.WarmRows(prefix)
			if len(rows) != 1 || rows[0].State != engine.Running || rows[0].Op != nil {
				return fmt.Errorf("%d warm rows", len(rows))
			}
			id = rows[0].EngineID
			return nil
		})
		return id
	}
	p := start("kill provision/register/done")
	if err := p.AwaitDeath(); err != nil {
		t.Fatal(err)
	}
	s.EndSessions(prefix)
	platformKey := ""
	for _, point := range append(pointsOf(t, "own"), "pool/warm-claimed") {
		// The next process can create a warm engine only if its own boot does not pass the
		// point.
		p = start("")
		waiting := warm("one warm engine before " + point)
		p.End()
		s.EndSessions(prefix)
		p = start("kill " + point)
		if platformKey == "" {
			product, err := p.RegisterProduct(ctx, "warm-faulty", "Warm", nil)
			if err != nil {
				t.Fatal(err)
			}
			platformKey = product.PlatformAPIKey
		}
		p.PlatformKey = platformKey
		key, n := "", 0
		harness.Eventually(t, point+": the warm engine is claimed", func() error { // a busy machine may skip it
			key, n = fmt.Sprint(point, "-", n), n+1
			e, err := harness.ProvisionOnce(ctx, p.Client, key, "u", "")
			if err != nil {
				return nil
			}
			if e.EngineID == waiting {
				t.Fatalf("%s: the call got a response", point)
			}
			if _, err := p.Destroy(ctx, "u"); err != nil {
				t.Fatal(err)
			}
			return errors.New("another engine was")
		})
		if err := p.AwaitDeath(); err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		s.EndSessions(prefix)
		p = start("")
		p.PlatformKey = platformKey
		var e *client.Engine
		harness.Eventually(t, point+": the same call again", func() (err error) {
			e, err = harness.ProvisionOnce(ctx, p.Client, key, "u", "")
			return err
		})
		if e.EngineID != waiting {
			t.Fatalf("%s: the retry returned %s, not %s", point, e.EngineID, waiting)
		}
		harness.Remember(t, e, e.APIKey, "alive")
		if next := warm("one warm engine after " + point); next == waiting {
			t.Errorf("%s: the claimed engine is in the pool", point)
		}
		s.Described(e.EngineID, "user `\"u\"`")
		if _, err := p.Destroy(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		if got := s.Census(prefix); got["rows"] != 1 || got["quota"] != 0 {
			t.Errorf("%s left: %v, want the warm engine alone", point, got)
		}
		p.End()
		s.EndSessions(prefix)
	}
}

// testBurnPoints kills a replica while it abandons an engine_id whose secret names an
// owner. The caller gets another id, and the owner gets its engine back.
func testBurnPoints(t *testing.T) {
	t.Parallel()
	const prefix = "faults-burn/"
	database, s, ctx := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), harness.OpenStores(t, harness.Shared), t.Context()
	var product *client.Registered
	for i, point := range pointsOf(t, "burn") {
		p := harness.StartFaulty(t, prefix, database, "kill "+point)
		if product == nil {
			var err error
			if product, err = p.RegisterProduct(ctx, "burn-faulty", "Burn", nil); err != nil {
				t.Fatal(err)
			}
		}
		harness.Eventually(t, "the pool is whole", func() error { return wholePool(s, prefix, 2) })
		// A pass that began before would find the victims first.
		harness.Eventually(t, "the first pass is over", func() error {
			if p.Log.Passes() == 0 {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		victims := map[string]string{} // keys, by engine_id
		entries, err := s.Pooled(prefix)
		if err != nil {
			t.Fatal(err)
		}
		for n, entry := range entries {
			victims[entry.EngineID] = owned(s, prefix, entry.EngineID, product.ProductID, fmt.Sprint("victim-", i, "-", n))
		}
		p.PlatformKey = product.PlatformAPIKey
		user := fmt.Sprint("u", i)
		if _, err := harness.ProvisionOnce(ctx, p.Client, point, user, ""); err == nil {
			t.Fatalf("%s: the call got a response", point)
		}
		if err := p.AwaitDeath(); err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		s.EndSessions(prefix)
		p = harness.StartFaulty(t, prefix, database, "", "ORCH_RESTART_BACKOFF_BASE_S=1")
		p.PlatformKey = product.PlatformAPIKey
		var e *client.Engine
		harness.Eventually(t, point+": the same call again", func() (err error) {
			e, err = harness.ProvisionOnce(ctx, p.Client, point, user, "")
			return err
		})
		if victims[e.EngineID] != "" || len(harness.Export(t, e, e.APIKey).Memories) > 0 {
			t.Fatalf("%s: the caller was given what is a victim's: %+v", point, e)
		}
		harness.Eventually(t, point+": the victims have what is theirs", func() error {
			for n := range entries {
				got, err := p.Engine(ctx, fmt.Sprint("victim-", i, "-", n))
				if err != nil || victims[got.EngineID] != got.APIKey {
					list, qerr := p.Quarantine(ctx)
					st, rerr := p.Registry(ctx)
					return fmt.Errorf("%+v, %w; quarantined are %+v, %w, the registry is %+v, %w", got, err, list, qerr, st, rerr)
				}
			}
			return nil
		})
		for n := range entries {
			if _, err := p.Destroy(ctx, fmt.Sprint("victim-", i, "-", n)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.Destroy(ctx, user); err != nil {
			t.Fatal(err)
		}
		p.End()
		s.EndSessions(prefix)
	}
}

// owned creates the secret of a user's engine, and returns its key.
func owned(s *harness.Stores, prefix, engineID, productID, userID string) string {
	s.T.Helper()
	key := secrets.NewEngineKey()
	_, err := s.Vault.KVv2(harness.MountName(prefix)).Put(s.T.Context(), "engines/"+engineID, map[string]any{
		"api_key": key, "key_id": secrets.NewKeyID(), "operation": "before",
		"owner": map[string]any{"deployment": s.Deployment(prefix).ID, "product_id": productID, "user_id": userID, "engine_id": engineID},
	})
	if err != nil {
		s.T.Fatal(err)
	}
	return key
}
