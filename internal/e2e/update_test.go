package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// versionBefore is the last commit of the version that knew no second witness.
const versionBefore = "b901afa07f1420e1679f03adfedae6f9c4a4c63c"

// buildBefore builds the version before this one from the repository's history.
func buildBefore(t *testing.T) string {
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

// A rolling update from the version before, under load: engines that it made keep
// their process, key and memory, are given their witnesses, and come back like all
// others when the registry is lost after that.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	before := buildBefore(t)
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
	_, token := mountOf(t, p.stack, prefix)
	addr := freeAddr(t)
	old := exec.Command(before, "server")
	old.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := &logBuffer{}
	old.Stderr = log
	old.Env = []string{
		"PATH=" + os.Getenv("PATH"), "ORCH_ADDR=" + addr, "ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine",
		"ORCH_ENGINE_BIN_DIR=" + binDir, "ORCH_ENGINE_LOGS=driver", "ORCH_CONSUL_PREFIX=" + prefix, "ORCH_VAULT_MOUNT=" + mountName(prefix), "ORCH_WARM_POOL=1",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32", "ORCH_VOLUME_POOL=3", "ORCH_DATABASE_URL=sqlite://" + filepath.Join(t.TempDir(), "audit.db"),
		"NOMAD_ADDR=" + p.stack.NomadAddr, "CONSUL_HTTP_ADDR=" + p.stack.ConsulAddr, "VAULT_ADDR=" + p.stack.VaultAddr, "VAULT_TOKEN=" + token,
	}
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = old.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = old.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("log of the version before:\n%s", tail(log.String(), 3000))
		}
	})
	at := &client.Client{BaseURL: "http://" + addr, AdminKey: adminKey}
	eventually(t, 60*time.Second, "the version before is ready", func() error { return at.Ready(ctx) })
	made, err := at.RegisterProduct(ctx, "one", "One", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: at.BaseURL, PlatformKey: made.PlatformAPIKey}
	p.r.url = at.BaseURL
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
	url.Store(at.BaseURL)
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
	eventually(t, 60*time.Second, "the new replica serves beside the old one", func() error {
		if served.Load() < n+20 {
			return fmt.Errorf("%d calls", served.Load()-n)
		}
		return nil
	})
	if err := old.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("the version before does not end")
	}
	eventually(t, 60*time.Second, "every engine has its witnesses", func() error {
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
