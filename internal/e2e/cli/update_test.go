package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

const (
	withoutWitness = "b901afa07f1420e1679f03adfedae6f9c4a4c63c" // the version before the second witness
	withOldNames   = "af24aeda91dfb11afac9b88182ee8fa7a09b743b" // the version that called unreachable volumes graves
)

// buildBefore builds the version of a commit from the repository's history.
func buildBefore(t *testing.T, versionBefore string) string {
	t.Helper()
	root, err := filepath.Abs(harness.Repository)
	if err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) ([]byte, error) {
		return exec.Command("git", append([]string{"-C", root, "-c", "safe.directory=*"}, args...)...).Output()
	}
	if _, err := git("cat-file", "-e", versionBefore+"^{commit}"); err != nil {
		t.Skip("this checkout does not have the history of the version before")
	}
	source := t.TempDir()
	archive, err := git("archive", versionBefore)
	if err != nil {
		t.Fatal(err)
	}
	untar := exec.Command("tar", "-x", "-C", source)
	untar.Stdin = bytes.NewReader(archive)
	if out, err := untar.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binary := filepath.Join(t.TempDir(), "orch-before")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/orch")
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// A rolling update from the previous version, under load: engines that it created keep
// their process, key and memory, get their witnesses, and are rebuilt like all others if
// the registry is lost afterwards.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	binary := buildBefore(t, withoutWitness)
	p := harness.NewPast(t, map[string]string{"ORCH_WARM_POOL": "1"})
	prefix, ctx := p.Vars["ORCH_CONSUL_PREFIX"], t.Context()
	// Everything of the new version is removed: the test begins with the old version.
	p.R.Stop()
	if _, err := p.S.Consul.KV().DeleteTree(prefix, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.S.Vault.Logical().Delete(harness.MountName(prefix) + "/metadata/deployment"); err != nil {
		t.Fatal(err)
	}
	old := harness.Serve(t, binary, p.Stack, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), "ORCH_VOLUME_POOL=3", "ORCH_WARM_POOL=1")
	made, err := old.RegisterProduct(ctx, "one", "One", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: old.BaseURL, PlatformKey: made.PlatformAPIKey}
	p.R.URL = old.BaseURL
	for _, user := range []string{"a", "b", "stopped"} {
		p.Provision(c, "one", user)
	}
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	p.Known["one/stopped"].Status = "stopped"
	pid := harness.Export(t, p.Known["one/a"].Engine, p.Known["one/a"].Engine.APIKey).Runs[0].PID

	// Load, through any replica that responds.
	var load sync.WaitGroup
	loading, enough := context.WithCancel(ctx)
	defer func() { enough(); load.Wait() }()
	var served, wrong atomic.Int64
	var url atomic.Value
	url.Store(old.BaseURL)
	load.Go(func() {
		for i := 0; loading.Err() == nil; i++ {
			user := []string{"a", "b", fmt.Sprint("made-", i%5)}[i%3]
			a, err := (&client.Client{BaseURL: url.Load().(string), PlatformKey: c.PlatformKey}).Admit(loading, user, client.AdmitOptions{AutoProvision: true})
			var bad *client.Error
			switch o := p.Known["one/"+user]; {
			case err == nil && a.Admitted && (o == nil || a.Engine.EngineID == o.Engine.EngineID && a.Engine.APIKey == o.Engine.APIKey):
				served.Add(1)
			case loading.Err() != nil, errors.As(err, &bad) && bad.Status == 503, err != nil && !errors.As(err, &bad):
			default:
				wrong.Add(1)
				t.Errorf("%s: %+v, %v", user, a, err)
			}
			select {
			case <-loading.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	p.R = harness.StartService(t, p.Stack, p.Vars) // beside the old replica, which leads
	if id := p.S.Deployment(prefix).ID; id == "" {
		t.Error("beside a leader of the version before there is no deployment")
	}
	url.Store(p.R.URL)
	n := served.Load()
	harness.Eventually(t, "the new replica serves beside the old one", func() error {
		if served.Load() < n+20 {
			return fmt.Errorf("%d calls", served.Load()-n)
		}
		return nil
	})
	old.Terminate(t)
	harness.Eventually(t, "every engine has its witnesses", func() error {
		rows, err := p.S.Engines(prefix)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Op != nil || row.State == "destroying" {
				continue
			}
			secret, err := p.S.Vault.KVv2(harness.MountName(prefix)).Get(ctx, "engines/"+row.EngineID)
			if err != nil {
				return err
			}
			owner, _ := secret.Data["owner"].(map[string]any)
			if row.KeyID == "" || secret.Data["key_id"] != row.KeyID || owner["engine_id"] != row.EngineID || owner["user_id"] != row.UserID {
				return fmt.Errorf("%s of %s: %v, key %q", row.State, row.UserID, owner, row.KeyID)
			}
			v, _, err := p.S.Nomad.Variables().Read("nomad/jobs/"+row.JobID(), nil)
			if err != nil || v.Items["engine"] == "" {
				return fmt.Errorf("the variable of %s: %v, %w", row.UserID, v, err)
			}
		}
		return nil
	})
	enough()
	load.Wait()
	t.Logf("%d admits were served, %d wrongly", served.Load(), wrong.Load())
	for who, o := range p.Known {
		if err := p.Has(o); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if runs := harness.Export(t, p.Known["one/a"].Engine, p.Known["one/a"].Engine.APIKey).Runs; len(runs) != 1 || runs[0].PID != pid {
		t.Errorf("an engine was restarted by the update: %+v", runs)
	}
	// Engines of the previous version are rebuilt like all others.
	p.R.Stop()
	if _, err := p.S.Consul.KV().DeleteTree(prefix, nil); err != nil {
		t.Fatal(err)
	}
	p.R = harness.StartService(t, p.Stack, p.Vars)
	p.Whole()
}

// A rolling update from the version that called unreachable volumes graves: each version
// reads and forgets what the other one lists, and the new version reads audit rows of the
// old one.
func TestRollingUpdateOfNames(t *testing.T) {
	t.Parallel()
	binary := buildBefore(t, withOldNames)
	const prefix = "names/"
	ctx, s := t.Context(), harness.OpenStores(t, harness.Shared)
	database := "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
	old := harness.Serve(t, binary, harness.Shared, prefix, database, "ORCH_VOLUME_POOL=3")
	made, err := old.RegisterProduct(ctx, "names", "Names", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: old.BaseURL, PlatformKey: made.PlatformAPIKey}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "before the update")
	for _, id := range []string{"one", "two", "three"} { // destroyed engines on a lost node
		value := `{"engine_id": "` + id + `", "node_id": "lost", "volume_id": "v", "product_id": "` + made.ProductID + `", "user_id": "gone"}`
		if _, err := s.Consul.KV().Put(&consul.KVPair{Key: prefix + "graves/" + id, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	undocumented := *old.Client // the document has no graves
	undocumented.HTTP = &http.Client{}
	if err := undocumented.Do(ctx, http.MethodDelete, "/graves/one", nil, nil); err != nil {
		t.Fatal(err)
	}

	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix}) // beside the old replica
	list, err := r.Admin().UnreachableVolumes(ctx)
	if err != nil || list.Total != 2 {
		t.Errorf("the new version lists %+v, %v", list, err)
	}
	if err := r.Admin().ForgetVolume(ctx, "two"); err != nil {
		t.Error(err)
	}
	var graves struct {
		Graves []client.UnreachableVolume `json:"graves"`
	}
	if err := undocumented.Do(ctx, http.MethodGet, "/graves", nil, &graves); err != nil || len(graves.Graves) != 1 || graves.Graves[0].EngineID != "three" {
		t.Errorf("the version before lists %+v, %v", graves, err)
	}
	old.Terminate(t)
	r.Stop()

	r = harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_DATABASE_URL": database})
	if err := r.Admin().ForgetVolume(ctx, "three"); err != nil {
		t.Error(err)
	}
	if left, _, err := s.Consul.KV().Keys(prefix+"graves/", "", nil); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	what := map[string]any{}
	for row, err := range r.Admin().AllAudit(ctx, client.AuditFilter{Action: "orphan_removed"}) {
		if err != nil {
			t.Fatal(err)
		}
		what[row.EngineID] = row.Metadata["what"]
	}
	if diff := cmp.Diff(map[string]any{"one": []any{"grave"}, "three": []any{"unreachable_volume"}}, what); diff != "" {
		t.Errorf("the audit log has (-want +got):\n%s", diff)
	}
	c.BaseURL = r.URL
	got, err := c.Engine(ctx, "u")
	if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := harness.Export(t, got, e.APIKey).Knows("before the update"); err != nil {
		t.Error(err)
	}
}
