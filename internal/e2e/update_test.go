package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
)

// The last commits of versions that are updated from.
const (
	withoutWitness = "b901afa07f1420e1679f03adfedae6f9c4a4c63c" // it knew no second witness
	withOldNames   = "af24aeda91dfb11afac9b88182ee8fa7a09b743b" // it called unreachable volumes graves
)

// buildBefore builds the version of a commit from the repository's history.
func buildBefore(t *testing.T, versionBefore string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
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

// before is a server of an earlier version.
type before struct {
	*client.Client // as the admin
	cmd            *exec.Cmd
	ended          chan struct{}
}

// startBefore starts a server of an earlier version and waits until it is ready.
func startBefore(t *testing.T, binary string, stack *devstack.Stack, prefix, database string, env ...string) *before {
	t.Helper()
	mount, token := mountOf(t, stack, prefix)
	addr, log := freeAddr(t), &logBuffer{}
	b := &before{Client: &client.Client{BaseURL: "http://" + addr, AdminKey: adminKey}, cmd: exec.Command(binary, "server"), ended: make(chan struct{})}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	b.cmd.Stderr = log
	b.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "ORCH_ADDR=" + addr, "ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine",
		"ORCH_ENGINE_BIN_DIR=" + binDir, "ORCH_ENGINE_LOGS=driver", "ORCH_CONSUL_PREFIX=" + prefix, "ORCH_VAULT_MOUNT=" + mount,
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=3", "ORCH_DATABASE_URL=" + database,
		"NOMAD_ADDR=" + stack.NomadAddr, "CONSUL_HTTP_ADDR=" + stack.ConsulAddr, "VAULT_ADDR=" + stack.VaultAddr, "VAULT_TOKEN=" + token,
	}, env...)
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.cmd.Wait(); close(b.ended) }()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.ended
		if t.Failed() {
			t.Logf("log of the version before:\n%s", tail(log.String(), 3000))
		}
	})
	eventually(t, "the version before is ready", func() error { return b.Ready(t.Context()) })
	return b
}

// stop has it finish what is in flight and end.
func (b *before) stop(t *testing.T) {
	t.Helper()
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("the version before does not end")
	}
}

// A rolling update from the version before, under load: engines that it made keep
// their process, key and memory, are given their witnesses, and come back like all
// others when the registry is lost after that.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	binary := buildBefore(t, withoutWitness)
	p := newPast(t, map[string]string{"ORCH_WARM_POOL": "1"})
	prefix, ctx := p.vars["ORCH_CONSUL_PREFIX"], t.Context()
	// All that the new version made goes: the old one begins.
	p.r.stop()
	if _, err := p.s.consul.KV().DeleteTree(prefix, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.s.vault.Logical().Delete(mountName(prefix) + "/metadata/deployment"); err != nil {
		t.Fatal(err)
	}
	old := startBefore(t, binary, p.stack, prefix, "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), "ORCH_WARM_POOL=1")
	made, err := old.RegisterProduct(ctx, "one", "One", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: old.BaseURL, PlatformKey: made.PlatformAPIKey}
	p.r.url = old.BaseURL
	for _, user := range []string{"a", "b", "stopped"} {
		p.provision(c, "one", user)
	}
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	p.known["one/stopped"].status = "stopped"
	pid := export(t, p.known["one/a"].engine, p.known["one/a"].engine.APIKey).Runs[0].PID

	// Load, through whichever replica answers.
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
			switch o := p.known["one/"+user]; {
			case err == nil && a.Admitted && (o == nil || a.Engine.EngineID == o.engine.EngineID && a.Engine.APIKey == o.engine.APIKey):
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
	p.r = startService(t, p.stack, p.vars) // beside the old one, which leads
	if id := p.s.deployment(prefix).ID; id == "" {
		t.Error("beside a leader of the version before there is no deployment")
	}
	url.Store(p.r.url)
	n := served.Load()
	eventually(t, "the new replica serves beside the old one", func() error {
		if served.Load() < n+20 {
			return fmt.Errorf("%d calls", served.Load()-n)
		}
		return nil
	})
	old.stop(t)
	eventually(t, "every engine has its witnesses", func() error {
		rows, err := p.s.engines(prefix)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Op != nil || row.State == "destroying" {
				continue
			}
			secret, err := p.s.vault.KVv2(mountName(prefix)).Get(ctx, "engines/"+row.EngineID)
			if err != nil {
				return err
			}
			owner, _ := secret.Data["owner"].(map[string]any)
			if row.KeyID == "" || secret.Data["key_id"] != row.KeyID || owner["engine_id"] != row.EngineID || owner["user_id"] != row.UserID {
				return fmt.Errorf("%s of %s: %v, key %q", row.State, row.UserID, owner, row.KeyID)
			}
			v, _, err := p.s.nomad.Variables().Read("nomad/jobs/"+row.JobID(), nil)
			if err != nil || v.Items["engine"] == "" {
				return fmt.Errorf("the variable of %s: %v, %w", row.UserID, v, err)
			}
		}
		return nil
	})
	enough()
	load.Wait()
	t.Logf("%d admits were served, %d wrongly", served.Load(), wrong.Load())
	for who, o := range p.known {
		if err := p.has(o); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	if runs := export(t, p.known["one/a"].engine, p.known["one/a"].engine.APIKey).Runs; len(runs) != 1 || runs[0].PID != pid {
		t.Errorf("an engine was restarted by the update: %+v", runs)
	}
	// What the version before made comes back like all else.
	p.r.stop()
	if _, err := p.s.consul.KV().DeleteTree(prefix, nil); err != nil {
		t.Fatal(err)
	}
	p.r = startService(t, p.stack, p.vars)
	p.whole()
}

// A rolling update from the version that called unreachable volumes graves: each
// version reads and forgets what the other one lists, and what the old one wrote
// into the audit log is read.
func TestRollingUpdateOfNames(t *testing.T) {
	t.Parallel()
	binary := buildBefore(t, withOldNames)
	const prefix = "names/"
	ctx, s := t.Context(), openStores(t, shared)
	database := "sqlite://" + filepath.Join(t.TempDir(), "audit.db")
	old := startBefore(t, binary, shared, prefix, database)
	made, err := old.RegisterProduct(ctx, "names", "Names", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: old.BaseURL, PlatformKey: made.PlatformAPIKey}
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	remember(t, e, e.APIKey, "before the update")
	for _, id := range []string{"one", "two", "three"} { // destroyed engines of a lost node
		value := `{"engine_id": "` + id + `", "node_id": "lost", "volume_id": "v", "product_id": "` + made.ProductID + `", "user_id": "gone"}`
		if _, err := s.consul.KV().Put(&consul.KVPair{Key: prefix + "graves/" + id, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	undocumented := *old.Client // the document has no graves
	undocumented.HTTP = &http.Client{}
	if err := undocumented.Do(ctx, http.MethodDelete, "/graves/one", nil, nil); err != nil {
		t.Fatal(err)
	}

	r := startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix}) // beside the old one
	list, err := r.admin().UnreachableVolumes(ctx)
	if err != nil || list.Total != 2 {
		t.Errorf("the new version lists %+v, %v", list, err)
	}
	if err := r.admin().ForgetVolume(ctx, "two"); err != nil {
		t.Error(err)
	}
	var graves struct {
		Graves []client.UnreachableVolume `json:"graves"`
	}
	if err := undocumented.Do(ctx, http.MethodGet, "/graves", nil, &graves); err != nil || len(graves.Graves) != 1 || graves.Graves[0].EngineID != "three" {
		t.Errorf("the version before lists %+v, %v", graves, err)
	}
	old.stop(t)
	r.stop()

	r = startService(t, shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_DATABASE_URL": database})
	if err := r.admin().ForgetVolume(ctx, "three"); err != nil {
		t.Error(err)
	}
	if left, _, err := s.consul.KV().Keys(prefix+"graves/", "", nil); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	what := map[string]any{}
	for row, err := range r.admin().AllAudit(ctx, client.AuditFilter{Action: "orphan_removed"}) {
		if err != nil {
			t.Fatal(err)
		}
		what[row.EngineID] = row.Metadata["what"]
	}
	if diff := cmp.Diff(map[string]any{"one": []any{"grave"}, "three": []any{"unreachable_volume"}}, what); diff != "" {
		t.Errorf("the audit log has (-want +got):\n%s", diff)
	}
	c.BaseURL = r.url
	got, err := c.Engine(ctx, "u")
	if err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := export(t, got, e.APIKey).knows("before the update"); err != nil {
		t.Error(err)
	}
}
