package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
)

// admin is a client of the replica with the admin key.
func (r *replica) admin() *client.Client { return &client.Client{BaseURL: r.url, AdminKey: adminKey} }

// passes is how many full passes the replica has made.
func (r *replica) passes() int { return strings.Count(r.logs.String(), "reconciled: actions=") }

// audited lists audit rows of an action, as the admin.
func (r *replica) audited(t *testing.T, action string) []auditRow {
	t.Helper()
	var page struct{ Entries []auditRow }
	if err := r.admin().Do(t.Context(), http.MethodGet, "/audit?limit=1000&action="+action, nil, &page); err != nil {
		t.Fatal(err)
	}
	return page.Entries
}

type auditRow struct {
	EngineID string `json:"engine_id"`
	UserID   string `json:"user_id"`
	Actor    string
	Outcome  string
	Metadata map[string]any
}

// planned is what a pass would do about an engine_id.
func (r *replica) planned(t *testing.T, engineID string) []string {
	t.Helper()
	plan, err := r.admin().PlanReconcile(t.Context())
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

// stray makes, manually, a job with a process, a volume and a variable under an
// engine_id that no row has, modelled on an engine that there is. They are of the
// deployment of a name and an id.
func (s *stores) stray(model *client.Engine, engineID, deployment, deploymentID string) {
	s.t.Helper()
	name := "engine-" + engineID
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Cleanup(func() { s.clear(engineID) })
	job, _, err := s.nomad.Jobs().Info("engine-"+model.EngineID, nil)
	must(err)
	made, _, err := s.nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
		Name: name, PluginID: "mkdir", NodeID: nodeOf(job),
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
	}}, nil)
	must(err)
	volume := made.Volume
	eventually(s.t, "the stray volume is ready", func() error {
		volume, _, err = s.nomad.HostVolumes().Get(made.Volume.ID, nil)
		if err == nil && volume.State != nomad.HostVolumeStateReady {
			err = fmt.Errorf("it is %s", volume.State)
		}
		return err
	})
	variable := nomad.NewVariable("nomad/jobs/" + name)
	variable.Items["key_hash"] = strings.Repeat("0", 64)
	_, _, err = s.nomad.Variables().Create(variable, nil)
	must(err)
	job.ID, job.Name = &name, &name
	job.Meta["engine_id"], job.Meta["deployment"], job.Meta["deployment_id"] = engineID, deployment, deploymentID
	group := job.TaskGroups[0]
	group.Volumes["brain"].Source = name
	group.Tasks[0].Env["SQLITE_DB_PATH"] = volume.HostPath + "/brain.sqlite"
	group.Tasks[0].Config["args"].([]any)[2] = volume.HostPath // whose lock it takes
	group.Tasks[0].Services[0].Name = name
	_, _, err = s.nomad.Jobs().Register(job, nil)
	must(err)
	eventually(s.t, "the stray process runs", func() error { return s.lives(name, true) })
}

// nodeOf is the node that an engine's job is bound to.
func nodeOf(job *nomad.Job) string {
	for _, c := range job.TaskGroups[0].Constraints {
		if c.LTarget == "${node.unique.id}" {
			return c.RTarget
		}
	}
	return ""
}

// lives returns nil when the job of a name has a living process, or has none, as
// is wanted.
func (s *stores) lives(name string, want bool) error {
	allocs, _, err := s.nomad.Jobs().Allocations(name, true, nil)
	if err != nil {
		return err
	}
	running := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "running" })
	if pending := slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return a.ClientStatus == "pending" }); running != want || !want && pending {
		return fmt.Errorf("running is %t", running)
	}
	return nil
}

// clear removes what stray made.
func (s *stores) clear(engineID string) {
	name := "engine-" + engineID
	_, _, _ = s.nomad.Jobs().Deregister(name, true, nil)
	_, _ = s.nomad.Variables().Delete("nomad/jobs/"+name, nil)
	if mount := s.mountWith(engineID); mount != "" {
		_, _ = s.vault.Logical().Delete(mount + "/metadata/engines/" + engineID)
	}
	eventually(s.t, "the stray volume is gone", func() error {
		volumes, _, err := s.nomad.HostVolumes().List(&nomad.HostVolumeListRequest{}, nil)
		for _, v := range volumes {
			if v.Name == name {
				_, _, err = s.nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: v.ID}, nil)
			}
		}
		return err
	})
}

// looseKey makes a secret that says nothing of whose it is.
func (s *stores) looseKey(prefix, engineID string) {
	s.t.Helper()
	if _, err := s.vault.Logical().Write(mountName(prefix)+"/data/engines/"+engineID, map[string]any{"data": map[string]any{"api_key": "no key"}}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _, _ = s.vault.Logical().Delete(mountName(prefix) + "/metadata/engines/" + engineID) })
}

// bareVolume makes a volume on the node of an engine that there is, that nothing
// else knows of.
func (s *stores) bareVolume(model *client.Engine, engineID string) {
	s.t.Helper()
	job, _, err := s.nomad.Jobs().Info("engine-"+model.EngineID, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	_, _, err = s.nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
		Name: "engine-" + engineID, PluginID: "mkdir", NodeID: nodeOf(job),
		RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
	}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.clear(engineID) })
}

// suspected sets a tombstone as old as an hour.
func (s *stores) suspected(prefix, engineID string) {
	s.t.Helper()
	tombstone, err := json.Marshal(map[string]any{"engine_id": engineID, "first_seen": time.Now().Add(-time.Hour)})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + "orphans/" + engineID, Value: tombstone}, nil); err != nil {
		s.t.Fatal(err)
	}
}

// engineIDOf makes an engine_id of a deployment's brand.
func engineIDOf(brand string) string { return brand + strings.ToLower(rand.Text())[:20] }

// What has no row and cannot hold anybody's memory is removed after its time and
// audited, whatever store it is in; nothing is while a list cannot be read; what
// another deployment made stays. What may hold somebody's memory is quarantined, and
// only an admin removes it.
func TestReconcileRemovesOrphans(t *testing.T) {
	t.Parallel()
	prefix := "orphans/"
	way, refused := consulWithout(t, prefix+"graves/")
	r := startService(t, shared, map[string]string{
		"CONSUL_HTTP_ADDR": way, "ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1", "ORCH_ORPHAN_GRACE_S": "2",
	})
	s, ctx := openStores(t, shared), t.Context()
	e, err := r.product(t, nil).Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "kept")
	pid := export(t, e, e.APIKey).Runs[0].PID
	brand, own := e.EngineID[:6], s.deployment(prefix).ID
	bare, loose, whole := engineIDOf(brand), engineIDOf(brand), engineIDOf(brand)
	foreignID, foreignName, foreignMeta := engineIDOf("zzzzzz"), engineIDOf(brand), engineIDOf(brand)

	// A list that cannot be read.
	refused.Store(true)
	s.stray(e, foreignID, "orphans", "")
	s.stray(e, foreignName, "somebody-else", own)
	s.stray(e, foreignMeta, "orphans", engineIDOf("zzzzzz"))
	s.stray(e, whole, "orphans", own)
	s.looseKey(prefix, whole)
	s.bareVolume(e, bare)
	s.looseKey(prefix, loose)
	variable := nomad.NewVariable("nomad/jobs/engine-" + loose)
	variable.Items["key_hash"] = strings.Repeat("0", 64)
	if _, _, err = s.nomad.Variables().Create(variable, nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{bare, loose, whole} {
		s.suspected(prefix, id)
	}
	before := r.passes()
	eventually(t, "some passes go by", func() error {
		if n := r.passes() - before; n < 4 {
			return fmt.Errorf("%d of 4", n)
		}
		return nil
	})
	if left := [][]string{s.traces(bare), s.traces(loose), s.traces(whole)}; len(left[0]) != 1 || len(left[1]) != 2 || len(left[2]) != 4 {
		t.Fatalf("something was removed although a list is unreadable: left are %v", left)
	}
	plan, err := r.admin().PlanReconcile(ctx)
	if err != nil || !slices.Equal(plan.Incomplete, []string{"unreachable_volumes"}) {
		t.Fatalf("the dry run says %+v, %v", plan, err)
	}
	refused.Store(false)

	gone := func(id string) {
		t.Helper()
		eventually(t, "the orphan is gone", func() error {
			mark, _, err := s.consul.KV().Get(prefix+"orphans/"+id, nil)
			if err != nil || mark != nil {
				return fmt.Errorf("it is still suspected: %v, %w", mark, err)
			}
			if left := s.traces(id); len(left) > 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
	}
	gone(bare)
	gone(loose)
	eventually(t, "their removal is audited", func() error {
		what := map[string]string{}
		for _, row := range r.audited(t, "orphan_removed") {
			if row.Actor != "system" || row.Outcome != "ok" {
				return fmt.Errorf("%+v", row)
			}
			what[row.EngineID] = fmt.Sprint(row.Metadata["what"])
		}
		if len(what) != 2 || what[bare] != "[volume]" || what[loose] != "[variable key]" {
			return fmt.Errorf("it says %v", what)
		}
		return nil
	})

	// The whole one is left to an admin.
	eventually(t, "what may hold somebody's memory is quarantined", func() error {
		list, err := r.admin().Quarantine(ctx)
		if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != whole {
			return fmt.Errorf("%+v, %w", list, err)
		}
		return nil
	})
	if err := s.lives("engine-"+whole, true); err != nil {
		t.Errorf("it was touched: %v", err)
	}
	if st, err := r.admin().Whole(ctx); err != nil || st.Quarantined != 1 {
		t.Errorf("the admin's status says %+v, %v", st, err)
	}
	if rows := r.audited(t, "quarantine"); len(rows) != 1 || rows[0].EngineID != whole || rows[0].Outcome != "ok" {
		t.Errorf("audited: %+v", rows)
	}
	// Its job, which was copied, names a user who has another engine.
	wantCode(t, second(r.admin().Adopt(ctx, whole, "", "")), 409, "ENGINE_ALREADY_EXISTS")
	wantCode(t, r.admin().Discard(ctx, bare), 404, "QUARANTINE_NOT_FOUND")
	if err := r.admin().Discard(ctx, whole); err != nil {
		t.Fatal(err)
	}
	if left := s.traces(whole); len(left) > 0 {
		t.Errorf("left of what was discarded: %v", left)
	}
	if rows := r.audited(t, "discard"); len(rows) != 1 || rows[0].EngineID != whole || rows[0].Actor != "admin" || rows[0].Outcome != "ok" {
		t.Errorf("audited: %+v", rows)
	}

	for name, id := range map[string]string{"another brand": foreignID, "our brand, another deployment": foreignName, "our brand and name, another deployment's id": foreignMeta} {
		if left := s.traces(id); len(left) != 3 {
			t.Errorf("%s: left are %v", name, left)
		}
		if acts := r.planned(t, id); len(acts) > 0 {
			t.Errorf("%s: a pass would %v", name, acts)
		}
		if err := s.lives("engine-"+id, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if runs := export(t, e, e.APIKey).Runs; len(runs) != 1 || runs[0].PID != pid {
		t.Errorf("the engine with a row was touched: %+v", runs)
	}
}

// An orphan waits its time, and the dry run says so; a tombstone of what has a
// row is taken away. A process that should not run is ended, a count that is
// wrong corrected, and two things of one name are left to an operator.
func TestReconcileCorrects(t *testing.T) {
	t.Parallel()
	prefix := "corrects/"
	vars := map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "1"}
	r := startService(t, shared, vars)
	s, ctx := openStores(t, shared), t.Context()
	admin := r.admin()
	p, err := admin.RegisterProduct(ctx, "corrects", "Corrects", policyOf(t, map[string]any{"max_engines": 4}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.url, PlatformKey: p.PlatformAPIKey}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	kv := s.consul.KV()
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
		eventually(t, "the count is corrected", func() error {
			if got := value("quota/" + p.ProductID); got != "1" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	})
	t.Run("Tombstones", func(t *testing.T) {
		put("orphans/"+e.EngineID, `{"engine_id": "`+e.EngineID+`", "first_seen": "2020-01-01T00:00:00Z"}`)
		eventually(t, "a living engine's tombstone is taken away", func() error {
			if got := value("orphans/" + e.EngineID); got != "" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		id := engineIDOf(e.EngineID[:6])
		s.looseKey(prefix, id)
		eventually(t, "the orphan waits", func() error {
			if acts := r.planned(t, id); !slices.Equal(acts, []string{"keep_orphan"}) {
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
		job, _, err := s.nomad.Jobs().Info(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		job.TaskGroups[0].Count = &one
		if _, _, err := s.nomad.Jobs().Register(job, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its process is ended again", func() error {
			job, _, err := s.nomad.Jobs().Info(name, nil)
			if err == nil && *job.TaskGroups[0].Count != 0 {
				err = fmt.Errorf("its job asks for %d", *job.TaskGroups[0].Count)
			}
			if err == nil {
				err = s.lives(name, false)
			}
			return err
		})
		eventually(t, "it is audited", func() error {
			for _, row := range r.audited(t, "stop") {
				if row.Actor == "system" && row.Outcome == "ok" && row.Metadata["why"] == "reconcile" {
					return nil
				}
			}
			return fmt.Errorf("%+v", r.audited(t, "stop"))
		})
		if got, err := c.Engine(ctx, "u"); err != nil || got.Status != "stopped" {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := c.Start(ctx, "u"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("Ambiguous", func(t *testing.T) {
		nodes, _, err := s.nomad.Nodes().List(nil)
		if err != nil || len(nodes) < 2 {
			t.Fatalf("%d nodes, %v", len(nodes), err)
		}
		job, _, err := s.nomad.Jobs().Info("engine-"+e.EngineID, nil)
		if err != nil {
			t.Fatal(err)
		}
		other := nodes[0].ID
		if other == nodeOf(job) {
			other = nodes[1].ID
		}
		second, _, err := s.nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
			Name: "engine-" + e.EngineID, PluginID: "mkdir", NodeID: other,
			RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if acts := r.planned(t, e.EngineID); !slices.Equal(acts, []string{"report"}) {
			t.Errorf("a pass would %v", acts)
		}
		eventually(t, "it is told", func() error {
			if !strings.Contains(r.logs.String(), "refuses to touch what is ambiguous") {
				return fmt.Errorf("nothing in the log")
			}
			return nil
		})
		eventually(t, "the second volume can be deleted", func() error {
			_, _, err := s.nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: second.Volume.ID}, nil)
			return err
		})
		if acts := r.planned(t, e.EngineID); len(acts) > 0 {
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
		wantCode(t, admin.ForgetVolume(ctx, e.EngineID), 404, "VOLUME_NOT_FOUND")
		if err := admin.ForgetVolume(ctx, id); err != nil {
			t.Fatal(err)
		}
		wantCode(t, admin.ForgetVolume(ctx, id), 404, "VOLUME_NOT_FOUND")
		if unreachable, err := admin.UnreachableVolumes(ctx); err != nil || len(unreachable.UnreachableVolumes) > 0 {
			t.Fatalf("%+v, %v", unreachable, err)
		}
		for _, row := range r.audited(t, "orphan_removed") {
			if row.EngineID == id && row.Actor == "admin" && row.Outcome == "ok" {
				return
			}
		}
		t.Errorf("not audited: %+v", r.audited(t, "orphan_removed"))
	})
	t.Run("Roles", func(t *testing.T) {
		vars["ORCH_RECONCILE_INTERVAL_S"] = "3600"
		r.stop()
		first := startService(t, shared, vars)
		eventually(t, "the first leads and has made its first pass", func() error {
			if role := roleOf(t, first); role != "leader" || first.passes() == 0 {
				return fmt.Errorf("it is %s after %d passes", role, first.passes())
			}
			return nil
		})
		second := startService(t, shared, vars)
		if role := roleOf(t, second); role != "follower" {
			t.Errorf("the second is %s", role)
		}
		// A pass that is asked for, on whichever replica, is the leader's.
		for _, asked := range []*replica{first, second, second} {
			before := first.passes()
			if err := asked.admin().Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the leader makes the pass", func() error {
				if first.passes() == before {
					return fmt.Errorf("it made %d", before)
				}
				return nil
			})
		}
		if n := second.passes(); n > 0 {
			t.Errorf("the follower made %d passes", n)
		}
	})
}

func roleOf(t *testing.T, r *replica) string {
	t.Helper()
	var health struct{ Role string }
	if err := r.admin().Do(t.Context(), http.MethodGet, "/health", nil, &health); err != nil {
		t.Fatal(err)
	}
	return health.Role
}
