package recovery

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/secrets"
)

// TestRebuildOfMany rebuilds the rows of many stopped engines, each from its secret,
// variable, job and volume. ORCH_TEST_REBUILD sets the number; with 1000 it measures the
// figures in docs/guarantees.md.
func TestRebuildOfMany(t *testing.T) {
	t.Parallel()
	many := 60
	if text := os.Getenv("ORCH_TEST_REBUILD"); text != "" {
		var err error
		if many, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	prefix := "rebuild-many/"
	stack := harness.OwnStack(t)
	r := harness.StartService(t, stack, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "0", "ORCH_RECONCILE_INTERVAL_S": "3600"})
	s, ctx := harness.OpenStores(t, stack), t.Context()
	c := r.Product(t, nil)
	model, err := c.Provision(ctx, "model", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(ctx, "model"); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Engines(prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	d, kv := s.Deployment(prefix), s.Vault.KVv2(harness.MountName(prefix))
	var work errgroup.Group
	work.SetLimit(16)
	for i := range many {
		id, user := engineIDOf(model.EngineID[:6]), fmt.Sprint("user-", i)
		work.Go(func() error {
			key, name := secrets.NewEngineKey(), engine.JobID(id)
			made, _, err := s.Nomad.HostVolumes().Create(&nomad.HostVolumeCreateRequest{Volume: &nomad.HostVolume{
				Name: name, PluginID: "mkdir", NodeID: rows[0].NodeID,
				RequestedCapabilities: []*nomad.HostVolumeCapability{{AccessMode: "single-node-single-writer", AttachmentMode: "file-system"}},
			}}, nil)
			if err != nil {
				return err
			}
			_, err = kv.Put(ctx, "engines/"+id, map[string]any{
				"api_key": key, "key_id": secrets.NewKeyID(), "operation": "made",
				"owner": map[string]any{"deployment": d.ID, "product_id": rows[0].ProductID, "user_id": user, "engine_id": id},
			})
			if err != nil {
				return err
			}
			variable := nomad.NewVariable("nomad/jobs/" + name)
			variable.Items["key_hash"] = secrets.Hash(key)
			if _, _, err := s.Nomad.Variables().Create(variable, nil); err != nil {
				return err
			}
			job, _, err := s.Nomad.Jobs().Info(engine.JobID(model.EngineID), nil)
			if err != nil {
				return err
			}
			job.ID, job.Name, job.Meta["engine_id"] = &name, &name, id
			group := job.TaskGroups[0]
			group.Volumes["brain"].Source = name
			services := append(group.Services, group.Tasks[0].Services...)
			services[0].Name = name
			services[0].Meta["engine_id"], services[0].Meta["user_id_b64"] = id, base64.RawURLEncoding.EncodeToString([]byte(user))
			group.Tasks[0].Env["SQLITE_DB_PATH"] = made.Volume.HostPath + "/brain.sqlite"
			_, _, err = s.Nomad.Jobs().Register(job, nil)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := r.Admin().RecoverRegistry(ctx); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "every row is back", func() error {
		st, err := r.Admin().Registry(ctx)
		if err != nil || st.State != "ok" || st.LastRecovery == nil || st.LastRecovery.Rebuilt != many || st.Quarantined != 0 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		t.Logf("%d engines were rebuilt in %s, from the request to the end", many, st.LastRecovery.EndedAt.Sub(st.LastRecovery.BeganAt).Round(time.Millisecond))
		return nil
	})
	page, err := c.Engines(ctx, client.EngineFilter{Status: "stopped"})
	if err != nil || page.Total != many+1 {
		t.Fatalf("%d engines are stopped, want %d: %v", page.Total, many+1, err)
	}
}
