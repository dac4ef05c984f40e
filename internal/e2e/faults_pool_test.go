package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/registry"
)

// wholePool returns nil when every entry of the pool has its volume, of its node
// and its id, and no volume is there twice.
func (s *stores) wholePool(prefix string, perNode int) error {
	entries, err := s.pooled(prefix)
	if err != nil {
		return err
	}
	volumes, _, err := s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
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
		theirs := named[registry.JobID(entry.EngineID)]
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

// pooled are the pool's entries.
func (s *stores) pooled(prefix string) ([]registry.PooledVolume, error) {
	pairs, _, err := s.consul.KV().List(prefix+"pool/volumes/", nil)
	if err != nil {
		return nil, err
	}
	entries := make([]registry.PooledVolume, len(pairs))
	for i, pair := range pairs {
		if err := json.Unmarshal(pair.Value, &entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// testPoolPoints kills the leader between the two halves of the making and of
// the removal of a pooled volume.
func testPoolPoints(t *testing.T) {
	t.Parallel()
	const prefix = "faults-pool/"
	database, s := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), openStores(t, shared)
	whole := func(what string) {
		t.Helper()
		eventually(t, 60*time.Second, what, func() error { return s.wholePool(prefix, 2) })
	}
	p := startFaulty(t, prefix, database, "kill pool/noted")
	if err := p.awaitDeath(40 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.endSessions(prefix)
	p = startFaulty(t, prefix, database, "kill pool/discarded")
	whole("the pool is whole after pool/noted")

	// An entry for engines that run as somebody else is of no use.
	keys, _, err := s.consul.KV().List(prefix+"pool/volumes/", nil)
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
	if ok, _, err := s.consul.KV().CAS(&consul.KVPair{Key: keys[0].Key, Value: value, ModifyIndex: keys[0].ModifyIndex}, nil); err != nil || !ok {
		t.Fatalf("%t, %v", ok, err)
	}
	if err := p.awaitDeath(40 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.endSessions(prefix)
	p = startFaulty(t, prefix, database, "", "ORCH_RECONCILE_INTERVAL_S=2")
	whole("the pool is whole after pool/discarded")
	if pair, _, err := s.consul.KV().Get(keys[0].Key, nil); err != nil || pair != nil {
		t.Errorf("the discarded entry is there: %v, %v", pair, err)
	}
	// A volume that a hand deleted is not handed out.
	if keys, _, err = s.consul.KV().List(prefix+"pool/volumes/", nil); err != nil || len(keys) == 0 {
		t.Fatalf("%d entries, %v", len(keys), err)
	}
	if err := json.Unmarshal(keys[0].Value, &entry); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: entry.VolumeID}, nil); err != nil {
		t.Fatal(err)
	}
	whole("the pool is whole after a volume was deleted by hand")
	entry = discarded
	// Its volume is empty and nobody's: what removes orphans may have it.
	if _, _, err := s.nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: entry.VolumeID}, nil); err != nil {
		t.Log("the discarded volume:", err)
	}
	// A smaller pool gives up what is too much, and the volumes with it.
	p.end()
	s.endSessions(prefix)
	before, err := s.pooled(prefix)
	if err != nil {
		t.Fatal(err)
	}
	startFaulty(t, prefix, database, "", "ORCH_VOLUME_POOL=1")
	eventually(t, 60*time.Second, "the pool has one volume per node", func() error {
		if err := s.wholePool(prefix, 1); err != nil {
			return err
		}
		left, err := s.pooled(prefix)
		if err != nil {
			return err
		}
		for _, v := range before {
			_, _, err := s.nomad.HostVolumes().Get(v.VolumeID, nil)
			if kept := slices.ContainsFunc(left, func(l registry.PooledVolume) bool { return l.VolumeID == v.VolumeID }); kept != (err == nil) {
				return fmt.Errorf("volume %s: in the pool %t, %w", v.VolumeID, kept, err)
			}
		}
		return nil
	})
}

// testWarmPoints kills the leader while it makes a warm engine, and a replica
// between the claim of one and the answer.
func testWarmPoints(t *testing.T) {
	t.Parallel()
	const prefix = "faults-warm/"
	database, s, ctx := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), openStores(t, shared), t.Context()
	start := func(armed string) *faulty { return startFaulty(t, prefix, database, armed, "ORCH_WARM_POOL=1") }
	warm := func(what string) string {
		t.Helper()
		id := ""
		eventually(t, 60*time.Second, what, func() error {
			rows := s.warmRows(prefix)
			if len(rows) != 1 || rows[0].State != registry.Running || rows[0].Op != nil {
				return fmt.Errorf("%d warm rows", len(rows))
			}
			id = rows[0].EngineID
			return nil
		})
		return id
	}
	p := start("kill provision/register/done")
	if err := p.awaitDeath(60 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.endSessions(prefix)
	p = start("kill pool/warm-claimed")
	waiting := warm("one warm engine after provision/register/done")
	product, err := p.RegisterProduct(ctx, "warm-faulty", "Warm", nil)
	if err != nil {
		t.Fatal(err)
	}
	p.PlatformKey = product.PlatformAPIKey
	if _, err := provisionOnce(ctx, p.Client, "once", "u", ""); err == nil {
		t.Fatal("the call was answered")
	}
	if err := p.awaitDeath(40 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.endSessions(prefix)
	p = start("")
	p.PlatformKey = product.PlatformAPIKey
	e, err := provisionOnce(ctx, p.Client, "once", "u", "")
	if err != nil || e.EngineID != waiting {
		t.Fatalf("the same call again: %+v, %v; want engine %s", e, err, waiting)
	}
	remember(t, e, e.APIKey, "alive")
	if next := warm("one warm engine after pool/warm-claimed"); next == waiting {
		t.Error("the claimed engine is in the pool")
	}
	s.described(e.EngineID, `user "u"`)
	if _, err := p.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if got := s.census(prefix); got["rows"] != 1 || got["quota"] != 0 {
		t.Errorf("left: %v, want the warm engine alone", got)
	}
}
