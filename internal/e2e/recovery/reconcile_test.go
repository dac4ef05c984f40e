package recovery

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// consulWithout is a proxy to the shared Consul that refuses a list of keys while refused
// is set.
func consulWithout(t *testing.T, below string) (way string, refused *atomic.Bool) {
	t.Helper()
	refused = new(atomic.Bool)
	return harness.ConsulProxy(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !refused.Load() || r.URL.Path != "/v1/kv/"+below || !r.URL.Query().Has("recurse") {
			return false
		}
		http.Error(w, "refused by the test", http.StatusInternalServerError)
		return true
	}), refused
}

// planned returns what a pass would do about an engine_id.
func planned(r *harness.Replica, t *testing.T, engineID string) []string {
	t.Helper()
	plan, err := r.Admin().PlanReconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var acts []string
	for _, a := range plan.Actions {
		if a.EngineID == engineID {
			acts = append(acts, a.Action)
		}
	}
	return acts
}

// stray creates, manually, a job with a process, a volume and a variable under an engine_id
// without a row, copied from an existing engine. They belong to the deployment with this
// name and id.
func stray(s *harness.Stores, model *client.Engine, engineID, deployment, deploymentID string) {
	s.T.Helper()
	name := "engine-" + engineID
	must := func(err error) {
		s.T.Helper()
		if err != nil {
			s.T.Fatal(err)
		}
	}
	s.T.Cleanup(func() { clear(s, engineID) })
	job, _, err := s.Nomad.Jobs().Info("engine-"+model.EngineID, nil)
	must(err)
	made, _, err := s.Nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
		Name: name, PluginID: "mkdir", NodeID: harness.NodeOf(job),
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
	}}, nil)
	must(err)
	volume := made.Volume
	harness.Eventually(s.T, "the stray volume is ready", func() error {
		volume, _, err = s.Nomad.HostVolumes().Get(made.Volume.ID, nil)
		if err == nil && volume.State != nomad.HostVolumeStateReady {
			err = fmt.Errorf("it is %s", volume.State)
		}
		return err
	})
	variable := nomad.NewVariable("nomad/jobs/" + name)
	variable.Items["key_hash"] = strings.Repeat("0", 64)
	_, _, err = s.Nomad.Variables().Create(variable, nil)
	must(err)
	job.ID, job.Name = &name, &name
	job.Meta["engine_id"], job.Meta["deployment"], job.Meta["deployment_id"] = engineID, deployment, deploymentID
	group := job.TaskGroups[0]
	group.Volumes["brain"].Source = name
	group.Tasks[0].Env["SQLITE_DB_PATH"] = volume.HostPath + "/brain.sqlite"
	group.Tasks[0].Config["args"].([]any)[2] = volume.HostPath // the brain that it locks
	group.Tasks[0].Services[0].Name = name
	_, _, err = s.Nomad.Jobs().Register(job, nil)
	must(err)
	harness.Eventually(s.T, "the stray process runs", func() error { return s.Lives(name, true) })
}

// clear removes what stray created.
func clear(s *harness.Stores, engineID string) {
	name := "engine-" + engineID
	_, _, _ = s.Nomad.Jobs().Deregister(name, true, nil)
	_, _ = s.Nomad.Variables().Delete("nomad/jobs/"+name, nil)
	if mount := s.MountWith(engineID); mount != "" {
		_, _ = s.Vault.Logical().Delete(mount + "/metadata/engines/" + engineID)
	}
	harness.Eventually(s.T, "the stray volume is removed", func() error {
		volumes, _, err := s.Nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
		for _, v := range volumes {
			if v.Name == name {
				_, _, err = s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: v.ID}, nil)
			}
		}
		return err
	})
}

// looseKey creates a secret that names no owner.
func looseKey(s *harness.Stores, prefix, engineID string) {
	s.T.Helper()
	if _, err := s.Vault.Logical().Write(harness.MountName(prefix)+"/data/engines/"+engineID, map[string]any{"data": map[string]any{"api_key": "no key"}}); err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { _, _ = s.Vault.Logical().Delete(harness.MountName(prefix) + "/metadata/engines/" + engineID) })
}

// bareVolume creates a volume on the node of an existing engine that nothing else refers
// to.
func bareVolume(s *harness.Stores, model *client.Engine, engineID string) {
	s.T.Helper()
	job, _, err := s.Nomad.Jobs().Info("engine-"+model.EngineID, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	_, _, err = s.Nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
		Name: "engine-" + engineID, PluginID: "mkdir", NodeID: harness.NodeOf(job),
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
	}}, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	s.T.Cleanup(func() { clear(s, engineID) })
}

// suspected sets the age of a tombstone to an hour.
func suspected(s *harness.Stores, prefix, engineID string) {
	s.T.Helper()
	tombstone, err := json.Marshal(map[string]any{"engine_id": engineID, "first_seen": time.Now().Add(-time.Hour)})
	if err != nil {
		s.T.Fatal(err)
	}
	if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "orphans/" + engineID, Value: tombstone}, nil); err != nil {
		s.T.Fatal(err)
	}
}

// engineIDOf generates an engine_id with an id prefix.
func engineIDOf(idPrefix string) string { return idPrefix + strings.ToLower(rand.Text())[:20] }

// Objects without a row that cannot contain anybody's memory are removed after the grace
// time and audited, in every store. Nothing is removed while a list cannot be read, and
// objects of another deployment stay. What may contain somebody's memory is quarantined,
// and only an admin removes it.
func TestReconcileRemovesOrphans(t *testing.T) {
	t.Parallel()
	prefix := "orphans/"
	way, refused := consulWithout(t, prefix+"graves/")
	r := harness.StartService(t, harness.Shared, map[string]string{
		"CONSUL_HTTP_ADDR": way, "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1", "ORCH_ORPHAN_GRACE_S": "2",
	})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	e, err := r.Product(t, nil).Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "kept")
	pid := harness.Export(t, e, e.APIKey).Runs[0].PID
	idPrefix, own := e.EngineID[:6], s.Deployment(prefix).ID
	bare, loose, whole := engineIDOf(idPrefix), engineIDOf(idPrefix), engineIDOf(idPrefix)
	foreignID, foreignName, foreignMeta := engineIDOf("zzzzzz"), engineIDOf(idPrefix), engineIDOf(idPrefix)

	// A list that cannot be read.
	refused.Store(true)
	stray(s, e, foreignID, "orphans", "")
	stray(s, e, foreignName, "somebody-else", own)
	stray(s, e, foreignMeta, "orphans", engineIDOf("zzzzzz"))
	stray(s, e, whole, "orphans", own)
	looseKey(s, prefix, whole)
	bareVolume(s, e, bare)
	looseKey(s, prefix, loose)
	variable := nomad.NewVariable("nomad/jobs/engine-" + loose)
	variable.Items["key_hash"] = strings.Repeat("0", 64)
	if _, _, err = s.Nomad.Variables().Create(variable, nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{bare, loose, whole} {
		suspected(s, prefix, id)
	}
	before := r.Passes()
	harness.Eventually(t, "some passes go by", func() error {
		if n := r.Passes() - before; n < 4 {
			return fmt.Errorf("%d of 4", n)
		}
		return nil
	})
	if left := [][]string{s.Traces(bare), s.Traces(loose), s.Traces(whole)}; len(left[0]) != 1 || len(left[1]) != 2 || len(left[2]) != 4 {
		t.Fatalf("something was removed although a list is unreadable: left are %v", left)
	}
	plan, err := r.Admin().PlanReconcile(ctx)
	if err != nil || !slices.Equal(plan.Incomplete, []string{"unreachable_volumes"}) {
		t.Fatalf("the dry run returns %+v, %v", plan, err)
	}
	refused.Store(false)

	gone := func(id string) {
		t.Helper()
		harness.Eventually(t, "the orphan is removed", func() error {
			mark, _, err := s.Consul.KV().Get(prefix+"orphans/"+id, nil)
			if err != nil || mark != nil {
				return fmt.Errorf("it is still suspected: %v, %w", mark, err)
			}
			if left := s.Traces(id); len(left) > 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
	}
	gone(bare)
	gone(loose)
	harness.Eventually(t, "their removal is audited", func() error {
		what := map[string]string{}
		for _, row := range r.Audited(t, "orphan_removed") {
			if row.Actor != "system" || row.Outcome != "ok" {
				return fmt.Errorf("%+v", row)
			}
			what[row.EngineID] = fmt.Sprint(row.Metadata["what"])
		}
		if len(what) != 2 || what[bare] != "[volume]" || what[loose] != "[variable key]" {
			return fmt.Errorf("it contains %v", what)
		}
		return nil
	})

	// The complete one is left to an admin.
	harness.Eventually(t, "what may hold somebody's memory is quarantined", func() error {
		list, err := r.Admin().Quarantine(ctx)
		if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != whole {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	if err := s.Lives("engine-"+whole, true); err != nil {
		t.Errorf("it was touched: %v", err)
	}
	if st, err := r.Admin().Whole(ctx); err != nil || st.Quarantined != 1 {
		t.Errorf("the admin's status is %+v, %v", st, err)
	}
	harness.Eventually(t, "the quarantine is audited", func() error {
		if rows := r.Audited(t, "quarantine"); len(rows) != 1 || rows[0].EngineID != whole || rows[0].Outcome != "ok" {
			return fmt.Errorf("%+v", rows)
		}
		return nil
	})
	// Its copied job names a user who has another engine.
	harness.WantCode(t, harness.ErrOf(r.Admin().Adopt(ctx, whole, "", "")), 409, "ENGINE_ALREADY_EXISTS")
	harness.WantCode(t, r.Admin().Discard(ctx, bare), 404, "QUARANTINE_NOT_FOUND")
	if err := r.Admin().Discard(ctx, whole); err != nil {
		t.Fatal(err)
	}
	if left := s.Traces(whole); len(left) > 0 {
		t.Errorf("left of what was discarded: %v", left)
	}
	harness.Eventually(t, "the discard is audited", func() error {
		if rows := r.Audited(t, "discard"); len(rows) != 1 || rows[0].EngineID != whole || rows[0].Actor != "admin" || rows[0].Outcome != "ok" {
			return fmt.Errorf("%+v", rows)
		}
		return nil
	})

	for name, id := range map[string]string{"another id prefix": foreignID, "our id prefix, another deployment": foreignName, "our id prefix and name, another deployment's id": foreignMeta} {
		if left := s.Traces(id); len(left) != 3 {
			t.Errorf("%s: left are %v", name, left)
		}
		if acts := planned(r, t, id); len(acts) > 0 {
			t.Errorf("%s: a pass would %v", name, acts)
		}
		if err := s.Lives("engine-"+id, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if runs := harness.Export(t, e, e.APIKey).Runs; len(runs) != 1 || runs[0].PID != pid {
		t.Errorf("the engine with a row was touched: %+v", runs)
	}
}

// An orphan is kept for the grace time, and the dry run says so; a tombstone of something
// with a row is removed. A process that should not run is ended, a wrong count is
// corrected, and two objects of one name are left to an operator.
func TestReconcileCorrects(t *testing.T) {
	t.Parallel()
	prefix := "corrects/"
	vars := map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"}
	r := harness.StartService(t, harness.Shared, vars)
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	admin := r.Admin()
	p, err := admin.RegisterProduct(ctx, "corrects", "Corrects", harness.PolicyOf(t, map[string]any{"max_engines": 4}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	kv := s.Consul.KV()
	put := func(key, value string) {
		t.Helper()
		if _, err := kv.Put(&consul.KVPair{Key: prefix + key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	value := func(key string) string {
		t.Helper()
		pair, _, err := kv.Get(prefix+key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if pair == nil {
			return ""
		}
		return string(pair.Value)
	}

	t.Run("Quota", func(t *testing.T) {
		put("quota/"+p.ProductID, "7")
		harness.Eventually(t, "the count is corrected", func() error {
			if got := value("quota/" + p.ProductID); got != "1" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	})
	t.Run("Tombstones", func(t *testing.T) {
		put("orphans/"+e.EngineID, `{"engine_id": "`+e.EngineID+`", "first_seen": "2020-01-01T00:00:00Z"}`)
		harness.Eventually(t, "a living engine's tombstone is removed", func() error {
			if got := value("orphans/" + e.EngineID); got != "" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		id := engineIDOf(e.EngineID[:6])
		looseKey(s, prefix, id)
		harness.Eventually(t, "the orphan waits", func() error {
			if acts := planned(r, t, id); !slices.Equal(acts, []string{"keep_orphan"}) {
				return fmt.Errorf("a pass would %v", acts)
			}
			return nil
		})
	})
	t.Run("Stopped", func(t *testing.T) {
		if _, err := c.Stop(ctx, "u"); err != nil {
			t.Fatal(err)
		}
		name, one := "engine-"+e.EngineID, 1
		job, _, err := s.Nomad.Jobs().Info(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		job.TaskGroups[0].Count = &one
		if _, _, err := s.Nomad.Jobs().Register(job, nil); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "its process is ended again", func() error {
			job, _, err := s.Nomad.Jobs().Info(name, nil)
			if err == nil && *job.TaskGroups[0].Count != 0 {
				err = fmt.Errorf("its job has count %d", *job.TaskGroups[0].Count)
			}
			if err == nil {
				err = s.Lives(name, false)
			}
			return err
		})
		harness.Eventually(t, "it is audited", func() error {
			for _, row := range r.Audited(t, "stop") {
				if row.Actor == "system" && row.Outcome == "ok" && row.Metadata["why"] == "reconcile" {
					return nil
				}
			}
			return fmt.Errorf("%+v", r.Audited(t, "stop"))
		})
		if got, err := c.Engine(ctx, "u"); err != nil || got.Status != "stopped" {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := c.Start(ctx, "u"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("Ambiguous", func(t *testing.T) {
		nodes, _, err := s.Nomad.Nodes().List(nil)
		if err != nil || len(nodes) < 2 {
			t.Fatalf("%d nodes, %v", len(nodes), err)
		}
		job, _, err := s.Nomad.Jobs().Info("engine-"+e.EngineID, nil)
		if err != nil {
			t.Fatal(err)
		}
		other := nodes[0].ID
		if other == harness.NodeOf(job) {
			other = nodes[1].ID
		}
		second, _, err := s.Nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
			Name: "engine-" + e.EngineID, PluginID: "mkdir", NodeID: other,
			RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if acts := planned(r, t, e.EngineID); !slices.Equal(acts, []string{"report"}) {
			t.Errorf("a pass would %v", acts)
		}
		harness.Eventually(t, "it is reported", func() error {
			if r.Logs.Count("[ERROR]", "engine_id="+e.EngineID, "why=") == 0 {
				return errors.New("nothing in the log")
			}
			return nil
		})
		harness.Eventually(t, "the second volume can be deleted", func() error {
			_, _, err := s.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: second.Volume.ID}, nil)
			return err
		})
		if acts := planned(r, t, e.EngineID); len(acts) > 0 {
			t.Errorf("a pass would %v", acts)
		}
	})
	t.Run("UnreachableVolumes", func(t *testing.T) {
		id, lost := engineIDOf(e.EngineID[:6]), "00000000-0000-4000-8000-000000000000"
		put("graves/"+id, `{"engine_id": "`+id+`", "node_id": "`+lost+`", "volume_id": "`+lost+`"}`)
		unreachable, err := admin.UnreachableVolumes(ctx)
		if err != nil || len(unreachable.UnreachableVolumes) != 1 || unreachable.UnreachableVolumes[0].EngineID != id || !unreachable.UnreachableVolumes[0].NodeSilent {
			t.Fatalf("%+v, %v", unreachable, err)
		}
		harness.WantCode(t, admin.ForgetVolume(ctx, e.EngineID), 404, "VOLUME_NOT_FOUND")
		if err := admin.ForgetVolume(ctx, id); err != nil {
			t.Fatal(err)
		}
		harness.WantCode(t, admin.ForgetVolume(ctx, id), 404, "VOLUME_NOT_FOUND")
		if unreachable, err := admin.UnreachableVolumes(ctx); err != nil || len(unreachable.UnreachableVolumes) > 0 {
			t.Fatalf("%+v, %v", unreachable, err)
		}
		harness.Eventually(t, "it is audited", func() error {
			rows := r.Audited(t, "orphan_removed")
			for _, row := range rows {
				if row.EngineID == id && row.Actor == "admin" && row.Outcome == "ok" {
					return nil
				}
			}
			return fmt.Errorf("%+v", rows)
		})
	})
	t.Run("Roles", func(t *testing.T) {
		vars["ORCH_RECONCILE_INTERVAL_S"] = "3600"
		r.Stop()
		first := harness.StartService(t, harness.Shared, vars)
		harness.Eventually(t, "the first leads and has made its first pass", func() error {
			if role := roleOf(t, first); role != "leader" || first.Passes() == 0 {
				return fmt.Errorf("it is %s after %d passes", role, first.Passes())
			}
			return nil
		})
		second := harness.StartService(t, harness.Shared, vars)
		if role := roleOf(t, second); role != "follower" {
			t.Errorf("the second is %s", role)
		}
		// The leader makes a requested pass, whichever replica got the request.
		for _, asked := range []*harness.Replica{first, second, second} {
			before := first.Passes()
			if err := asked.Admin().Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, "the leader makes the pass", func() error {
				if first.Passes() == before {
					return fmt.Errorf("it made %d", before)
				}
				return nil
			})
		}
		if n := second.Passes(); n > 0 {
			t.Errorf("the follower made %d passes", n)
		}
	})
}

func roleOf(t *testing.T, r *harness.Replica) string {
	t.Helper()
	var health struct{ Role string }
	if err := r.Admin().Do(t.Context(), http.MethodGet, "/health", nil, &health); err != nil {
		t.Fatal(err)
	}
	return health.Role
}
