package secrets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	vault "github.com/hashicorp/vault/api"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
)

const (
	rootToken = "root-token-of-the-tests"
	mount     = "orch"
)

// agent is the Vault of this package's tests, started by the first test that needs it.
var agent vaultAgent

func TestMain(m *testing.M) {
	code := m.Run()
	agent.stop()
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; code == 0 && !fuzzing {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

type vaultAgent struct {
	once sync.Once
	err  error
	dir  string
	addr string
	cmd  *exec.Cmd
	root *vault.Client
	idle []func()
}

// start runs a Vault in memory that ends with this process, however that ends.
func (a *vaultAgent) start() error {
	binaries, err := devstack.Tools(context.Background(), devstack.ToolOptions{})
	if err != nil {
		return err
	}
	if a.dir, err = os.MkdirTemp("", "orch-secrets-"); err != nil {
		return err
	}
	// Vault in dev mode also uses the next higher port.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	a.addr = l.Addr().String()
	_ = l.Close()
	a.cmd = exec.Command(binaries.Vault, "server", "-dev", "-dev-root-token-id="+rootToken, "-dev-no-store-token", "-dev-listen-address="+a.addr)
	a.cmd.Env = []string{"HOME=" + a.dir, "GOMAXPROCS=2"}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	if a.root, err = a.client(rootToken); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	return await(ctx, func() error {
		err := a.root.Sys().MountWithContext(ctx, mount, &vault.MountInput{Type: "kv", Options: map[string]string{"version": "2"}})
		if err != nil && strings.Contains(err.Error(), "already in use") {
			err = nil
		}
		if err == nil { // while a new mount is upgraded to version 2, it fails
			_, err = a.root.KVv2(mount).Put(ctx, "ready", map[string]any{"x": "y"})
		}
		return err
	})
}

func (a *vaultAgent) client(token string) (*vault.Client, error) {
	cfg := vault.DefaultConfig()
	if cfg.Error != nil {
		return nil, cfg.Error
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	a.idle = append(a.idle, transport.CloseIdleConnections)
	cfg.Address, cfg.HttpClient.Transport, cfg.MaxRetries = "http://"+a.addr, transport, 0
	c, err := vault.NewClient(cfg)
	if err == nil {
		c.SetToken(token)
	}
	return c, err
}

func (a *vaultAgent) stop() {
	for _, closeIdle := range a.idle {
		closeIdle()
	}
	if a.cmd != nil && a.cmd.Process != nil {
		_ = a.cmd.Process.Kill() // its data is only in memory
		_ = a.cmd.Wait()
	}
	if a.dir != "" {
		_ = os.RemoveAll(a.dir)
	}
}

// await polls until check returns nil.
func await(ctx context.Context, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// keysWith returns the Vault of a replica with this token and a separate cache.
func keysWith(t *testing.T, token string) *Vault {
	t.Helper()
	agent.once.Do(func() { agent.err = agent.start() })
	if agent.err != nil {
		t.Fatal(agent.err)
	}
	c, err := agent.client(token)
	if err != nil {
		t.Fatal(err)
	}
	return New(c, mount)
}

func keys(t *testing.T) *Vault { t.Helper(); return keysWith(t, rootToken) }

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	if err != nil && (strings.Contains(err.Error(), EngineKeyPrefix) || strings.Contains(err.Error(), rootToken)) {
		t.Fatalf("an error contains a secret: %v", err)
	}
}

func wantKey(t *testing.T, v *Vault, id string, number int, want string) {
	t.Helper()
	got, err := v.EngineKey(t.Context(), id, number, keyIDOf(want))
	if err != nil || got.Key != want || got.Version != number || got.Owner != ownerOf(id) {
		t.Fatalf("version %d of %s is %+v, %v, want %q", number, id, got, err, want)
	}
}

// put writes the next version.
func put(t *testing.T, v *Vault, id string, current int) string {
	t.Helper()
	k := testKey(id)
	err := v.PutEngineKey(t.Context(), id, k, current)
	if err != nil || k.Version != current+1 {
		t.Fatalf("version %d, %v, want %d", k.Version, err, current+1)
	}
	return k.Key
}

// testKey returns a new key of an engine, with an id derived from the key.
func testKey(id string) *EngineKey {
	key := NewEngineKey()
	return &EngineKey{Key: key, ID: keyIDOf(key), Owner: ownerOf(id), Operation: "op"}
}

func keyIDOf(key string) string { return Hash(key)[:26] }

func ownerOf(id string) Owner {
	return Owner{Deployment: "d", ProductID: "p", UserID: "u/\u00fc \x00", EngineID: id}
}

func newest(t *testing.T, v *Vault, id string, want int) {
	t.Helper()
	if got, err := v.NewestVersion(t.Context(), id); err != nil || got != want {
		t.Fatalf("newest version %d, %v, want %d", got, err, want)
	}
}

func TestEngineKeys(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		v, other := keys(t), keys(t)
		newest(t, v, "ok", 0)
		first := put(t, v, "ok", 0)
		second := put(t, v, "ok", 1)
		for _, reader := range []*Vault{v, other, other} { // cached, read, cached
			wantKey(t, reader, "ok", 1, first)
			wantKey(t, reader, "ok", 2, second)
			newest(t, reader, "ok", 2)
		}
	})
	t.Run("ErrConflict", func(t *testing.T) {
		v := keys(t)
		first := put(t, v, "cas", 0)
		for _, wrong := range []int{0, 2, 7} {
			wantErr(t, v.PutEngineKey(t.Context(), "cas", testKey("cas"), wrong), ErrConflict)
		}
		wantErr(t, v.PutEngineKey(t.Context(), "cas-none", testKey("cas-none"), 1), ErrConflict)
		newest(t, v, "cas", 1)
		wantKey(t, v, "cas", 1, first)
		wantKey(t, keys(t), "cas", 1, first)
	})
	t.Run("ErrConflictOneWins", func(t *testing.T) {
		v := keys(t)
		var mu sync.Mutex
		var wg sync.WaitGroup
		won := map[int]string{}
		for range 10 {
			wg.Go(func() {
				key := testKey("race")
				err := v.PutEngineKey(t.Context(), "race", key, 0)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won[key.Version] = key.Key
				} else if !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || won[1] == "" {
			t.Fatalf("%d writers won: %v", len(won), len(won))
		}
		wantKey(t, v, "race", 1, won[1])
		wantKey(t, keys(t), "race", 1, won[1])
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		v := keys(t)
		_, err := v.EngineKey(t.Context(), "none", 1, "")
		wantErr(t, err, ErrNotFound)
		put(t, v, "one", 0)
		_, err = v.EngineKey(t.Context(), "one", 2, "")
		wantErr(t, err, ErrNotFound)
	})
	// Vault interprets version 0 as the newest, which changes.
	t.Run("ErrNotFoundVersionZero", func(t *testing.T) {
		v := keys(t)
		put(t, v, "zero", 0)
		for _, number := range []int{0, -1} {
			_, err := v.EngineKey(t.Context(), "zero", number, "")
			wantErr(t, err, ErrNotFound)
		}
	})
	t.Run("ErrNotAKey", func(t *testing.T) {
		v := keys(t)
		for id, data := range map[string]map[string]any{
			"damaged-1": {"api_key": "something-else"}, "damaged-2": {"other": NewEngineKey()}, "damaged-3": {"api_key": 7},
			"damaged-4": {"api_key": NewPlatformKey()},
		} {
			if _, err := agent.root.KVv2(mount).Put(t.Context(), "engines/"+id, data); err != nil {
				t.Fatal(err)
			}
			_, err := v.EngineKey(t.Context(), id, 1, "")
			wantErr(t, err, ErrNotFound)
			if strings.Contains(err.Error(), "something-else") || strings.Contains(err.Error(), PlatformKeyPrefix) {
				t.Fatalf("the error shows Vault's data: %v", err)
			}
		}
	})
}

func TestDestroyVersionsBefore(t *testing.T) {
	v, other := keys(t), keys(t)
	const versions = 4
	var all []string
	for n := range versions {
		all = append(all, put(t, v, "destroy", n))
	}
	if err := v.DestroyVersionsBefore(t.Context(), "destroy", 1); err != nil {
		t.Fatal(err)
	}
	wantKey(t, other, "destroy", 1, all[0])
	if err := v.DestroyVersionsBefore(t.Context(), "destroy", versions); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < versions; n++ {
		for _, reader := range []*Vault{v, keys(t)} {
			_, err := reader.EngineKey(t.Context(), "destroy", n, "")
			wantErr(t, err, ErrNotFound)
		}
	}
	wantKey(t, v, "destroy", versions, all[versions-1])
	wantKey(t, keys(t), "destroy", versions, all[versions-1])
	newest(t, v, "destroy", versions)
	// They cannot be recovered, not even as root.
	if err := agent.root.KVv2(mount).Undelete(t.Context(), "engines/destroy", []int{1}); err == nil {
		_, err := keys(t).EngineKey(t.Context(), "destroy", 1, "")
		wantErr(t, err, ErrNotFound)
	}
	// Repeated, and for a missing secret: there is nothing to do.
	if err := v.DestroyVersionsBefore(t.Context(), "destroy", versions); err != nil {
		t.Fatal(err)
	}
}

func TestDestroyVersionsBeforeMany(t *testing.T) {
	v := keys(t)
	for n := range 14 { // Vault keeps ten
		put(t, v, "many", n)
	}
	if err := v.DestroyVersionsBefore(t.Context(), "many", 14); err != nil {
		t.Fatal(err)
	}
	reader := keys(t)
	for n := 1; n < 14; n++ {
		_, err := reader.EngineKey(t.Context(), "many", n, "")
		wantErr(t, err, ErrNotFound)
	}
	if _, err := reader.EngineKey(t.Context(), "many", 14, ""); err != nil {
		t.Fatal(err)
	}
}

func TestDeleteEngine(t *testing.T) {
	v := keys(t)
	put(t, v, "delete", 0)
	put(t, v, "delete", 1)
	keep := put(t, v, "delete-not", 0)
	for range 2 { // deleting twice is no error
		if err := v.DeleteEngine(t.Context(), "delete"); err != nil {
			t.Fatal(err)
		}
	}
	newest(t, v, "delete", 0)
	for n := 1; n <= 2; n++ {
		_, err := v.EngineKey(t.Context(), "delete", n, "")
		wantErr(t, err, ErrNotFound)
	}
	wantKey(t, v, "delete-not", 1, keep)
}

// TestCache: a key with an id is read once, and another one is never returned for it.
func TestCache(t *testing.T) {
	v := keys(t)
	type version struct {
		engineID string
		number   int
	}
	written := map[version]string{}
	for _, id := range []string{"cache-1", "cache-11", "cache-2"} {
		for n := range cacheVersions {
			written[version{id, n + 1}] = put(t, v, id, n)
		}
	}
	reader := keys(t)
	for range 2 {
		for at, want := range written {
			wantKey(t, reader, at.engineID, at.number, want)
		}
	}
	// The second time nothing was requested: cached keys do not need Vault.
	reader.client.SetToken("not-a-token")
	for at, want := range written {
		wantKey(t, reader, at.engineID, at.number, want)
	}
	// Without an id, the key is read from Vault each time.
	_, err := reader.EngineKey(t.Context(), "cache-1", 1, "")
	wantErr(t, err, ErrDenied)
	_, err = reader.EngineKey(t.Context(), "cache-1", 4, "")
	wantErr(t, err, ErrDenied)
}

// TestVersionsCountedAnew: a Vault that lost an engine's metadata gives a new key the
// version number of an old one. Neither key is ever returned for the other.
func TestVersionsCountedAnew(t *testing.T) {
	v, other := keys(t), keys(t)
	old := put(t, v, "anew", 0)
	wantKey(t, other, "anew", 1, old)
	if err := keys(t).DeleteEngine(t.Context(), "anew"); err != nil {
		t.Fatal(err)
	}
	if has, err := other.HasKey(t.Context(), "anew", 1, keyIDOf(old)); err != nil || has {
		t.Fatalf("Vault still has it: %t, %v", has, err)
	}
	now := put(t, keys(t), "anew", 0)
	for _, reader := range []*Vault{v, other, keys(t)} {
		wantKey(t, reader, "anew", 1, now)
	}
	_, err := keys(t).EngineKey(t.Context(), "anew", 1, keyIDOf(old))
	wantErr(t, err, ErrNotFound)
}

// TestClaimOnce: the owner in a secret is changed once, by check-and-set.
func TestClaimOnce(t *testing.T) {
	v := keys(t)
	key := put(t, v, "claim", 0)
	claim := func(user string) error {
		k := &EngineKey{Key: key, ID: keyIDOf(key), Owner: Owner{"d", "p", user, "claim"}, Operation: user}
		return v.PutEngineKey(t.Context(), "claim", k, 1)
	}
	if err := claim("first"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, claim("second"), ErrConflict)
	k, err := v.NewestKey(t.Context(), "claim")
	if err != nil || k.Key != key || k.Owner.UserID != "first" || k.Operation != "first" || k.Version != 2 {
		t.Fatalf("%+v, %v", k, err)
	}
	all, err := v.Keys(t.Context(), "claim")
	if err != nil || len(all) != 2 || all[0].Version != 2 || all[1].Owner != ownerOf("claim") {
		t.Fatalf("%+v, %v", all, err)
	}
}

// TestRecords: records are read as written, and overwritten only by check-and-set.
func TestRecords(t *testing.T) {
	v := keys(t)
	d, err := v.Deployment(t.Context())
	if err != nil || d.ID != "" || d.Version != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	wanted := Deployment{ID: "d", Registry: "r", Epoch: 3, Where: "here", Challenge: "c"}
	put := wanted
	if err := v.PutDeployment(t.Context(), &put); err != nil || put.Version != 1 {
		t.Fatalf("%+v, %v", put, err)
	}
	wantErr(t, v.PutDeployment(t.Context(), &Deployment{ID: "other"}), ErrConflict)
	got, err := keys(t).Deployment(t.Context())
	wanted.Version = 1
	if err != nil || *got != wanted {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := agent.root.KVv2(mount).Delete(t.Context(), deploymentPath); err != nil {
		t.Fatal(err)
	}
	if got, err = v.Deployment(t.Context()); err != nil || got.ID != "" || got.Version != 1 {
		t.Fatalf("a deleted one: %+v, %v", got, err)
	}
	p := &Product{Revision: 2, Record: []byte(`{"slug":"s"}`)}
	if err := v.PutProduct(t.Context(), "p", p); err != nil {
		t.Fatal(err)
	}
	read, err := keys(t).Product(t.Context(), "p")
	if err != nil || read.Revision != 2 || string(read.Record) != `{"slug":"s"}` || read.Deleted || read.Version != 1 {
		t.Fatalf("%+v, %v", read, err)
	}
	if ids, err := v.ProductIDs(t.Context()); err != nil || !slices.Contains(ids, "p") {
		t.Fatalf("%v, %v", ids, err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	v := New(nowhere(t), mount)
	for n := range cacheEngines + 100 {
		v.remember(fmt.Sprint("engine-", n), &EngineKey{Key: "key", ID: "id", Version: 1})
	}
	if len(v.cache) != cacheEngines {
		t.Fatalf("keys of %d engines are cached, want %d", len(v.cache), cacheEngines)
	}
	last := fmt.Sprint("engine-", cacheEngines+99)
	for n := range 10 {
		v.remember(last, &EngineKey{Key: "key", ID: "id", Version: n + 1})
	}
	if held := v.cache[last]; len(held) != cacheVersions || held[cacheVersions-1].Version != 10 {
		t.Fatalf("of the newest engine there are %d versions", len(held))
	}
}

// nowhere returns a client that cannot reach a Vault.
func nowhere(t *testing.T) *vault.Client {
	t.Helper()
	cfg := vault.DefaultConfig()
	cfg.Address, cfg.MaxRetries = "http://127.0.0.1:1", 0
	cfg.HttpClient.Transport = &http.Transport{DisableKeepAlives: true}
	c, err := vault.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPutEnv(t *testing.T) {
	v := keys(t)
	envVersion := func(want int) {
		t.Helper()
		meta, err := agent.root.KVv2(mount).GetMetadata(t.Context(), envPath)
		if err != nil || meta.CurrentVersion != want {
			t.Fatalf("version %+v, %v, want %d", meta, err, want)
		}
	}
	env := map[string]string{"LLM_API_KEY": "sk-1", "OPENAI_API_KEY": "line\nbreak \"quotes\""}
	if version, err := v.EnvVersion(t.Context()); err != nil || version != 0 {
		t.Fatalf("without any: version %d, %v", version, err)
	}
	for try := range 2 {
		version, written, err := v.PutEnv(t.Context(), env)
		if err != nil || version != 1 || written != (try == 0) {
			t.Fatalf("version %d, written %t, %v", version, written, err)
		}
		envVersion(1)
	}
	for i, changed := range []map[string]string{
		{"LLM_API_KEY": "sk-2", "OPENAI_API_KEY": env["OPENAI_API_KEY"]}, // another value
		{"LLM_API_KEY": "sk-2"}, // one variable less
		{"OPENAI_API_KEY": "x"}, // another variable
	} {
		for range 2 {
			if version, _, err := v.PutEnv(t.Context(), changed); err != nil || version != i+2 {
				t.Fatalf("version %d, %v", version, err)
			}
		}
		envVersion(i + 2)
		if version, err := v.EnvVersion(t.Context()); err != nil || version != i+2 {
			t.Fatalf("version %d, %v", version, err)
		}
		held, err := agent.root.KVv2(mount).Get(t.Context(), envPath)
		if err != nil || len(held.Data) != len(changed) {
			t.Fatalf("Vault holds %v, %v, want %v", held, err, changed)
		}
		for name, value := range changed {
			if held.Data[name] != value {
				t.Fatalf("%s is %v, want %q", name, held.Data[name], value)
			}
		}
	}
	// Values that Nomad could not read are not written.
	for _, unreadable := range []string{strings.Repeat("x", 66_000), "\xff", "a\x00b"} {
		if _, _, err := v.PutEnv(t.Context(), map[string]string{"LLM_API_KEY": unreadable}); err == nil {
			t.Error("a provider key that Nomad cannot read was written")
		}
		envVersion(4)
	}
	t.Run("AtOnce", testPutEnvAtOnce)
	if got, want := v.EnvTemplatePath(), "orch/data/engine-env"; got != want {
		t.Fatalf("template path %q, want %q", got, want)
	}
}

// Replicas that start concurrently with the same keys write one version.
func testPutEnvAtOnce(t *testing.T) {
	v := keys(t)
	before, err := v.EnvVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"LLM_API_KEY": NewEngineKey()}
	var replicas sync.WaitGroup
	for range 8 {
		replicas.Go(func() {
			if version, _, err := v.PutEnv(t.Context(), env); err != nil || version != before+1 {
				t.Errorf("version %d, %v, want %d", version, err, before+1)
			}
		})
	}
	replicas.Wait()
}

func TestEngineIDs(t *testing.T) {
	v := keys(t)
	want := []string{}
	for i := range 3 {
		id := fmt.Sprint("listed-", i)
		if err := v.PutEngineKey(t.Context(), id, testKey(id), 0); err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	has := func(ids []string) int {
		return len(slices.DeleteFunc(slices.Clone(want), func(id string) bool { return !slices.Contains(ids, id) }))
	}
	if ids, err := v.EngineIDs(t.Context()); err != nil || has(ids) != 3 {
		t.Fatalf("%v, %v, want %v", ids, err, want)
	}
	for _, id := range want {
		if err := v.DeleteEngine(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := v.EngineIDs(t.Context()); err != nil || has(ids) != 0 {
		t.Fatalf("%v, %v: they are deleted", ids, err)
	}
}

// everyCall returns one call of each kind.
func everyCall(ctx context.Context, v *Vault) map[string]func() error {
	return map[string]func() error{
		"PutEngineKey":          func() error { return v.PutEngineKey(ctx, "x", testKey("x"), 0) },
		"EngineKey":             func() error { _, err := v.EngineKey(ctx, "x", 1, "id"); return err },
		"NewestKey":             func() error { _, err := v.NewestKey(ctx, "x"); return err },
		"Keys":                  func() error { _, err := v.Keys(ctx, "x"); return err },
		"HasKey":                func() error { _, err := v.HasKey(ctx, "x", 1, ""); return err },
		"Deployment":            func() error { _, err := v.Deployment(ctx); return err },
		"PutDeployment":         func() error { return v.PutDeployment(ctx, &Deployment{ID: "d"}) },
		"Product":               func() error { _, err := v.Product(ctx, "p"); return err },
		"PutProduct":            func() error { return v.PutProduct(ctx, "p", &Product{Revision: 1}) },
		"ProductIDs":            func() error { _, err := v.ProductIDs(ctx); return err },
		"NewestVersion":         func() error { _, err := v.NewestVersion(ctx, "x"); return err },
		"DestroyVersionsBefore": func() error { return v.DestroyVersionsBefore(ctx, "x", 2) },
		"DeleteEngine":          func() error { return v.DeleteEngine(ctx, "x") },
		"PutEnv": func() error {
			_, _, err := v.PutEnv(ctx, map[string]string{"LLM_API_KEY": NewEngineKey()})
			return err
		},
		"EnvVersion": func() error { _, err := v.EnvVersion(ctx); return err },
		"EngineIDs":  func() error { _, err := v.EngineIDs(ctx); return err },
	}
}

func TestErrUnavailable(t *testing.T) {
	v := New(nowhere(t), mount)
	v.client.SetToken(rootToken)
	calls := everyCall(t.Context(), v)
	calls["Ping"] = func() error { return v.Ping(t.Context()) }
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { wantErr(t, call(), ErrUnavailable) })
	}
}

func TestErrDenied(t *testing.T) {
	v := keysWith(t, "no-such-token")
	for name, call := range everyCall(t.Context(), v) {
		t.Run(name, func(t *testing.T) { wantErr(t, call(), ErrDenied) })
	}
}

// Ping uses the service's own token, and a permission that the service needs.
func TestPing(t *testing.T) {
	if err := keys(t).Ping(t.Context()); err != nil {
		t.Errorf("before the record is written: %v", err)
	}
	wantErr(t, keysWith(t, "no-such-token").Ping(t.Context()), ErrDenied)
	t.Run("ErrDeniedWithoutTheRight", func(t *testing.T) {
		wantErr(t, keysWith(t, newToken(t, &vault.TokenCreateRequest{Policies: []string{"default"}})).Ping(t.Context()), ErrDenied)
	})
	t.Run("ErrDeniedOnceItEnded", func(t *testing.T) {
		token := newToken(t, &vault.TokenCreateRequest{})
		v := keysWith(t, token)
		if err := v.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := agent.root.Auth().Token().RevokeTreeWithContext(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		wantErr(t, v.Ping(t.Context()), ErrDenied)
	})
	t.Run("ErrUnavailableWithoutTheMount", func(t *testing.T) {
		wantErr(t, New(keys(t).client, "no-such-mount").Ping(t.Context()), ErrUnavailable)
	})
}

func newToken(t *testing.T, req *vault.TokenCreateRequest) string {
	t.Helper()
	keys(t)
	secret, err := agent.root.Auth().Token().CreateWithContext(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Auth.ClientToken
}

// A token that will expire is reported at the start of the service, with the time.
func TestKeepTokenTellsOfTheEnd(t *testing.T) {
	no, yes := false, true
	for name, c := range map[string]struct {
		req  vault.TokenCreateRequest
		ends time.Duration // 0: never
	}{
		"not renewable":      {vault.TokenCreateRequest{TTL: "1h", Renewable: &no}, time.Hour},
		"explicit maximum":   {vault.TokenCreateRequest{TTL: "1h", ExplicitMaxTTL: "2h", Renewable: &yes}, 2 * time.Hour},
		"the mount's limit":  {vault.TokenCreateRequest{TTL: "768h", Renewable: &yes}, 768 * time.Hour},
		"with a period":      {vault.TokenCreateRequest{Period: "1h", Renewable: &yes}, 0},
		"revoked, or denied": {vault.TokenCreateRequest{TTL: "1h", NumUses: 1}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			token, began := newToken(t, &c.req), time.Now()
			v := keysWith(t, token)
			if c.ends < 0 {
				_ = v.Ping(t.Context()) // its last use
			}
			var lines logLines
			log := hclog.New(&hclog.LoggerOptions{Output: &lines, JSONFormat: true})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			done := make(chan struct{})
			go func() { defer close(done); v.KeepToken(ctx, log) }()
			defer func() { cancel(); <-done }()
			var line map[string]any
			if err := await(ctx, func() (err error) { line, err = lines.first(); return err }); err != nil {
				t.Fatal(err)
			}
			level, said := line["@level"], line["ends"]
			if c.ends <= 0 {
				if want := map[bool]string{true: "info", false: "error"}[c.ends == 0]; level != want || said != nil {
					t.Errorf("it logged %v, want level %s", line, want)
				}
				return
			}
			ends, err := time.Parse(time.RFC3339, fmt.Sprint(said))
			if off := ends.Sub(began.Add(c.ends)); err != nil || level != "warn" || off.Abs() > time.Minute {
				t.Errorf("it logged %v, want a warning of the end in %s", line, c.ends)
			}
			if text := fmt.Sprint(line); strings.Contains(text, token) {
				t.Error("the token is in the log")
			}
		})
	}
}

// logLines are the lines that a logger wrote.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) first() (line map[string]any, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, _, found := strings.Cut(l.text.String(), "\n")
	if !found {
		return nil, errors.New("nothing was logged")
	}
	return line, json.Unmarshal([]byte(text), &line)
}

// TestKeepToken: the token is renewed repeatedly.
func TestKeepToken(t *testing.T) {
	v, renewable := keys(t), true
	secret, err := agent.root.Auth().Token().CreateWithContext(t.Context(), &vault.TokenCreateRequest{
		Policies: []string{"default"}, Period: "6s", Renewable: &renewable,
	})
	if err != nil {
		t.Fatal(err)
	}
	v.client.SetToken(secret.Auth.ClientToken)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan struct{})
	go func() { defer close(done); v.KeepToken(ctx, hclog.NewNullLogger()) }()
	defer func() { cancel(); <-done }()
	renewals := map[string]bool{}
	err = await(ctx, func() error {
		self, err := agent.root.Auth().Token().LookupWithContext(ctx, secret.Auth.ClientToken)
		if err != nil {
			return err
		}
		if at := fmt.Sprint(self.Data["last_renewal_time"]); at != "<nil>" {
			renewals[at] = true
		}
		if len(renewals) < 3 {
			return fmt.Errorf("renewed at %v", renewals)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
