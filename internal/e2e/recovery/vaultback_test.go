package recovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// accepts returns an error unless an engine accepts a key and refuses others.
func accepts(t *testing.T, e *client.Engine, key string, refused ...string) error {
	t.Helper()
	if status, err := harness.EngineCall(t.Context(), e, key, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusOK {
		return fmt.Errorf("its key: %d, %w", status, err)
	}
	for _, old := range refused {
		if status, err := harness.EngineCall(t.Context(), e, old, http.MethodGet, "/memory/export", nil, nil); err != nil || status != http.StatusUnauthorized {
			return fmt.Errorf("an earlier key: %d, %w", status, err)
		}
	}
	return nil
}

// An engine whose key's metadata was deleted manually in Vault gets a new key by a
// rotation, or at its next start. No replica returns the old key afterwards, although Vault
// counts versions from 1 again.
func TestKeyDeletedInVault(t *testing.T) {
	t.Parallel()
	for name, reload := range map[string]string{"restart": "", "reload": "signal"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vars := map[string]string{"ORCH_VOLUME_POOL": "1", "ORCH_RECONCILE_INTERVAL_S": "2"}
			if reload != "" {
				vars["ORCH_ENGINE_KEY_RELOAD"], vars["ORCH_ENGINE_IMAGE"] = reload, "reference-engine.reload"
			}
			all := harness.StartReplicas(t, 2, vars)
			s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
			c := all[0].Product(t, nil)
			e, err := c.Provision(ctx, "u", "")
			if err != nil {
				t.Fatal(err)
			}
			harness.Remember(t, e, e.APIKey, "kept")
			lose := func() {
				t.Helper()
				for _, r := range all { // each replica has it in its cache
					if got, err := harness.At(c, r).Engine(ctx, "u"); err != nil || got.APIKey == "" {
						t.Fatalf("%+v, %v", got, err)
					}
				}
				if _, err := s.Vault.Logical().Delete(s.MountWith(e.EngineID) + "/metadata/engines/" + e.EngineID); err != nil {
					t.Fatal(err)
				}
			}
			first := e.APIKey
			lose()
			harness.Eventually(t, "a pass logs what to do", func() error {
				for _, act := range planned(all[0], t, e.EngineID) {
					if act == "report" {
						return nil
					}
				}
				return fmt.Errorf("it would %v", planned(all[0], t, e.EngineID))
			})
			second, err := harness.At(c, all[1]).RotateKey(ctx, "u")
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range all {
				if got, err := harness.At(c, r).Engine(ctx, "u"); err != nil || got.APIKey != second {
					t.Fatalf("%+v, %v", got, err)
				}
				a, err := harness.At(c, r).Admit(ctx, "u", client.AdmitOptions{})
				if err != nil || !a.Admitted || a.Engine.APIKey != second {
					t.Fatalf("%+v, %v", a, err)
				}
			}
			if err := accepts(t, e, second, first); err != nil {
				t.Fatal(err)
			}
			lose()
			if _, err := c.Stop(ctx, "u"); err != nil {
				t.Fatal(err)
			}
			if _, err := harness.At(c, all[1]).Start(ctx, "u"); err != nil {
				t.Fatal(err)
			}
			var third string
			for _, r := range all {
				got, err := harness.At(c, r).Engine(ctx, "u")
				if err != nil || got.APIKey == second || got.APIKey == "" || third != "" && got.APIKey != third {
					t.Fatalf("%+v, %v", got, err)
				}
				third, e.URL = got.APIKey, got.URL
			}
			if err := accepts(t, e, third, first, second); err != nil {
				t.Fatal(err)
			}
			if err := harness.Export(t, e, third).Knows("kept"); err != nil {
				t.Fatal(err)
			}
			// The repaired engine can rotate its key like any other.
			if second, err = c.RotateKey(ctx, "u"); err != nil {
				t.Fatal(err)
			}
			if err := accepts(t, e, second, third); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Destroy(ctx, "u"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A Vault that is restored from an old backup has lost keys, and nothing else: nothing is
// removed, no users are confused, the admin sees how many engines lost their key, and
// re-keying restores all of them.
func TestVaultRestored(t *testing.T) {
	t.Parallel()
	p := harness.NewPast(t, map[string]string{"ORCH_IDLE_TIMEOUT_S": "0", "ORCH_WARM_POOL": "1"})
	ctx := t.Context()
	c := p.Tenant("one", nil)
	p.S.AwaitWarm(p.R, 1)
	for _, user := range []string{"kept", "rotated", "stopped"} {
		p.Provision(c, "one", user)
	}
	storage, backup := p.Stack.DataDir(devstack.Vault), filepath.Join(t.TempDir(), "vault")
	restart := func(between func()) {
		t.Helper()
		if err := p.Stack.Kill(devstack.Vault); err != nil {
			t.Fatal(err)
		}
		between()
		if err := p.Stack.Restart(ctx, devstack.Vault); err != nil {
			t.Fatal(err)
		}
	}
	copied := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	then := map[string]bool{}
	p.S.AwaitWarm(p.R, 1)
	for _, row := range p.S.WarmRows(p.Vars["ORCH_CONSUL_PREFIX"]) {
		then[row.EngineID] = true
	}
	restart(func() { copied(storage, backup) })
	old := map[string]string{}
	for _, user := range []string{"rotated", "stopped"} {
		harness.Eventually(t, "its key is rotated", func() error {
			key, err := c.RotateKey(ctx, user)
			if err == nil {
				old[user] = p.Known["one/"+user].Engine.APIKey
				p.Known["one/"+user].Engine.APIKey = key
			}
			return err
		})
	}
	if _, err := c.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	p.Known["one/stopped"].Status = "stopped"
	// An engine that was warm when the backup was made. A busy machine may skip it.
	harness.Eventually(t, "it is claimed", func() error {
		if o := p.Provision(c, "one", "claimed"); then[o.Engine.EngineID] {
			return nil
		}
		if _, err := c.Destroy(ctx, "claimed"); err != nil {
			t.Fatal(err)
		}
		return errors.New("another engine was")
	})
	p.S.Described(p.Known["one/claimed"].Engine.EngineID, "user `\"claimed\"`")
	p.Provision(c, "one", "since")
	p.R.Stop() // no replica has a key in its cache
	restart(func() {
		if err := os.RemoveAll(storage); err != nil {
			t.Fatal(err)
		}
		copied(backup, storage)
	})
	p.R = harness.StartService(t, p.Stack, p.Vars)
	c.BaseURL = p.R.URL
	harness.Eventually(t, "the admin sees it", func() error {
		st, err := p.R.Admin().Registry(ctx)
		if err != nil || st.State != "ok" || st.Keys != "lost" || st.KeysMissing != 3 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	})
	if err := p.Has(p.Known["one/kept"]); err != nil {
		t.Error(err)
	}
	harness.Eventually(t, "the one that was warm then is its user's", func() error { return p.Has(p.Known["one/claimed"]) })
	for _, user := range []string{"rotated", "since"} {
		harness.WantCode(t, harness.ErrOf(c.Engine(ctx, user)), 502, "BACKEND_ERROR")
	}
	before := p.R.Passes()
	harness.Eventually(t, "passes go by, longer than the grace", func() error {
		if n := p.R.Passes() - before; n < 4 {
			return fmt.Errorf("%d of 4", n)
		}
		return nil
	})
	p.Provision(c, "one", "new") // a user who is not affected
	done, err := p.R.Admin().Rekey(ctx)
	if err != nil || done.Rekeyed != 2 || done.AtStart != 1 || done.Failed != 0 || done.Left != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := c.Start(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"kept", "rotated", "stopped", "claimed", "since", "new"} {
		o := p.Known["one/"+user]
		got, err := c.Engine(ctx, user)
		if err != nil || got.Status != "running" || got.EngineID != o.Engine.EngineID {
			t.Fatalf("%s: %+v, %v", user, got, err)
		}
		refused := []string{}
		if user != "kept" && user != "new" && user != "claimed" {
			if got.APIKey == o.Engine.APIKey {
				t.Errorf("%s has the key that Vault lost", user)
			}
			refused = append(refused, o.Engine.APIKey)
			if old[user] != "" {
				refused = append(refused, old[user])
			}
		}
		if err := accepts(t, got, got.APIKey, refused...); err != nil {
			t.Errorf("%s: %v", user, err)
		}
		if err := harness.Export(t, got, got.APIKey).Knows(o.Memory); err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	harness.Eventually(t, "every engine has its key again", func() error {
		st, err := p.R.Admin().Registry(ctx)
		if err != nil || st.Keys != "ok" || st.KeysMissing != 0 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	})
}

// The keys of a deployment belong to it: a service with another registry does not start
// with them, whatever its prefix.
func TestForeignMount(t *testing.T) {
	t.Parallel()
	prefix := "foreign-mount/"
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_CONSUL_PREFIX": prefix, "ORCH_VOLUME_POOL": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	ours := s.Deployment(prefix).ID
	other := otherConsul(t)
	for name, tc := range map[string]struct{ prefix, consul string }{
		"AnotherPrefix":                     {"foreign-other/", harness.Shared.ConsulAddr},
		"AnotherConsul and the same prefix": {prefix, other},
	} {
		t.Run(name, func(t *testing.T) {
			access, _ := harness.Deploy(t, harness.Shared, tc.prefix)
			theirs, mount := harness.Deploy(t, harness.Shared, prefix)
			access.VaultToken, access.ConsulAddr = theirs.VaultToken, tc.consul
			orch, err := harness.OrchBinary()
			if err != nil {
				t.Fatal(err)
			}
			limited, cancel := context.WithTimeout(ctx, 90*time.Second)
			defer cancel()
			cmd := exec.CommandContext(limited, orch, "server")
			cmd.Env = append(access.Environ(),
				"PATH="+os.Getenv("PATH"), "ORCH_ADDR="+harness.FreeAddr(t), "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_ADMIN_KEY="+harness.AdminKey, "ORCH_DATABASE_URL=sqlite://"+filepath.Join(t.TempDir(), "audit.db"),
				"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR="+harness.BinDir, "ORCH_CONSUL_PREFIX="+tc.prefix, "ORCH_VAULT_MOUNT="+mount,
				"ORCH_ENGINE_ENV_PASSTHROUGH=LLM_API_KEY", "LLM_API_KEY=of-a-stranger", "ORCH_NOMAD_NAMESPACE="+harness.Shared.Namespace, "ORCH_ALLOW_OPEN_NOMAD="+strconv.FormatBool(access.Open()),
			)
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 1 {
				t.Errorf("exit code %d", code)
			}
			for _, want := range []string{ours, mount, "ORCH_VAULT_MOUNT"} {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not name %q:\n%s", want, harness.Tail(string(out), 1500))
				}
			}
		})
	}
	secret, err := s.Vault.KVv2(harness.MountName(prefix)).Get(ctx, "engine-env")
	if err != nil || secret.Data["LLM_API_KEY"] != harness.ProviderKey {
		t.Errorf("the provider keys are another's: %v", err)
	}
	if got, err := c.Engine(ctx, "u"); err != nil || got.EngineID != e.EngineID || got.APIKey != e.APIKey || got.Status != "running" {
		t.Errorf("%+v, %v", got, err)
	}
	if st, err := r.Admin().Registry(ctx); err != nil || st.State != "ok" || st.DeploymentID != ours {
		t.Errorf("%+v, %v", st, err)
	}
}

// otherConsul starts a Consul that the stack's agents do not know.
func otherConsul(t *testing.T) string {
	t.Helper()
	var ports [3]string
	for i := range ports {
		_, ports[i], _ = net.SplitHostPort(harness.FreeAddr(t))
	}
	file := filepath.Join(t.TempDir(), "consul.hcl")
	config := fmt.Sprintf("ports { http = %s, server = %s, serf_lan = %s, serf_wan = -1, dns = -1, grpc = -1, grpc_tls = -1 }\nbind_addr = \"127.0.0.1\"\ndisable_update_check = true\n", ports[0], ports[1], ports[2])
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(harness.Binaries.Consul, "agent", "-dev", "-log-level=error", "-config-file="+file)
	cmd.Env = []string{"HOME=" + t.TempDir(), "GOMAXPROCS=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its data is only in memory
		_ = cmd.Wait()
	})
	addr := "http://127.0.0.1:" + ports[0]
	harness.Eventually(t, "the other Consul is up", func() error {
		c, err := consul.NewClient(&consul.Config{Address: addr, Transport: &http.Transport{DisableKeepAlives: true}})
		if err != nil {
			return err
		}
		if leader, err := c.Status().Leader(); err != nil || leader == "" {
			return fmt.Errorf("no leader: %q, %w", leader, err)
		}
		return nil
	})
	return addr
}
