package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// soakFor is how long TestSoak runs; without it, it does not run (`make soak`).
var soakFor = flag.Duration("soak.for", 0, "how long TestSoak runs, at most 1h")

const (
	soakAdmits = 200 // per second, where the machine can make as many
	soakUsers  = 20
	// tokenLife is the life of every token of the service, and of the engines' tokens in
	// Vault. It is twice Nomad's and Consul's minimum.
	tokenLife = 2 * time.Minute
	// certLife is the life of every agent's certificate, and of the service's own. The
	// agents read theirs again on SIGHUP.
	certLife = 10 * time.Minute
)

// TestSoak: on locked agents, with tokens of two minutes and certificates of ten minutes that
// are all replaced in time, no admit fails and no other call either, and the service does
// not grow.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("it runs for as long as -soak.for says")
	}
	const prefix = "soak/"
	length := min(*soakFor, time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	s := newSoak(t, prefix)
	var admits, others atomic.Int64
	var work sync.WaitGroup
	every := func(interval time.Duration, do func(n int64) error) {
		work.Go(func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for n := int64(0); ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if err := do(n); err != nil {
					t.Errorf("%s: %v", time.Now().UTC().Format(time.TimeOnly), err)
				}
			}
		})
	}
	// At once: the service may start slowly.
	every(tokenLife/2, func(int64) error { return s.replaceTokens() })
	every(certLife/2, func(int64) error { return s.replaceCertificates() })
	p := harness.StartProcess(t, s.stack, prefix, s.env()...)
	made, err := p.RegisterProduct(t.Context(), "soak", "Soak", harness.PolicyOf(t, map[string]any{"rate_limit_rpm": 1000000}))
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: p.BaseURL, PlatformKey: made.PlatformAPIKey}
	for i := range soakUsers {
		if _, err := c.Provision(t.Context(), user(i), ""); err != nil {
			t.Fatal(err)
		}
	}

	const lanes = 4
	for range lanes {
		every(lanes*time.Second/soakAdmits, func(n int64) error {
			a, err := c.Admit(t.Context(), user(int(n)%soakUsers), client.AdmitOptions{})
			if err == nil && !a.Admitted {
				err = fmt.Errorf("not admitted: %s", a.Reason)
			}
			admits.Add(1)
			return err
		})
	}
	every(3*time.Second, func(n int64) error {
		defer others.Add(1)
		if _, err := c.Provision(t.Context(), "guest", ""); err != nil {
			return fmt.Errorf("provision: %w", err)
		}
		if _, err := c.RotateKey(t.Context(), "guest"); err != nil {
			return fmt.Errorf("rotate: %w", err)
		}
		if _, err := c.Destroy(t.Context(), "guest"); err != nil {
			return fmt.Errorf("destroy: %w", err)
		}
		return nil
	})
	every(time.Second, func(int64) error {
		h, err := p.Health(t.Context())
		if err == nil && h.Status != "ok" {
			err = fmt.Errorf("health: %+v", h)
		}
		return err
	})
	var sizes []size
	every(10*time.Second, func(int64) error {
		now, err := s.size()
		if err == nil {
			sizes = append(sizes, now)
		}
		return err
	})
	work.Wait()

	t.Logf("%s: %d admits (%.0f per second), %d provisions with rotation and destroy", length, admits.Load(), float64(admits.Load())/length.Seconds(), others.Load())
	wantNoGrowth(t, sizes)
	for _, token := range s.used {
		if strings.Contains(p.Log.String(), token) {
			t.Error("the log has a token")
		}
	}
}

func user(i int) string { return fmt.Sprint("user-", i) }

// size is what a service holds.
type size struct{ memory, goroutines float64 }

func (s *soak) size() (size, error) {
	resp, err := http.Get(s.metrics)
	if err != nil {
		return size{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return size{}, err
	}
	var now size
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "process_resident_memory_bytes":
			now.memory, err = strconv.ParseFloat(value, 64)
		case "go_goroutines":
			now.goroutines, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return size{}, err
		}
	}
	if now.memory == 0 || now.goroutines == 0 {
		return size{}, fmt.Errorf("the size is not in %d bytes of metrics", len(text))
	}
	return now, nil
}

// wantNoGrowth compares the second quarter of the time, when everything has been used once,
// with the last quarter.
func wantNoGrowth(t *testing.T, sizes []size) {
	t.Helper()
	quarter := len(sizes) / 4
	if quarter < 3 {
		t.Logf("not enough sizes to compare: %v", sizes)
		return
	}
	median := func(of []size, what func(size) float64) float64 {
		var list []float64
		for _, s := range of {
			list = append(list, what(s))
		}
		slices.Sort(list)
		return list[len(list)/2]
	}
	for name, what := range map[string]func(size) float64{
		"resident memory": func(s size) float64 { return s.memory },
		"goroutines":      func(s size) float64 { return s.goroutines },
	} {
		early, late := median(sizes[quarter:2*quarter], what), median(sizes[len(sizes)-quarter:], what)
		t.Logf("%s: %.0f in the second quarter, %.0f in the last", name, early, late)
		if late > early*1.15 {
			t.Errorf("%s grew from %.0f to %.0f", name, early, late)
		}
	}
}

// soak is a locked stack whose tokens and certificates do not last.
type soak struct {
	stack     *devstack.Stack
	nomad     *nomad.Client
	consul    *consul.Client
	policies  []*consul.ACLTokenPolicyLink // of the service's token in Consul
	vault     string                       // the service's token in Vault, which it renews
	authority *devstack.Authority
	dir       string
	metrics   string // URL
	addr      string // of the operators' listener
	used      []string
}

func newSoak(t *testing.T, prefix string) *soak {
	t.Helper()
	stack := harness.OwnStack(t, devstack.Config{Locked: true})
	access, mount := harness.Deploy(t, stack, prefix)
	s := &soak{stack: stack, dir: t.TempDir(), addr: harness.FreeAddr(t)}
	s.metrics = "http://" + s.addr + "/metrics"
	s.authority = stack.Authority(s.dir)
	s.nomad, s.consul = operators(t, stack)
	own, _, err := s.consul.ACL().TokenReadSelf(&consul.QueryOptions{Token: access.ConsulToken})
	if err != nil {
		t.Fatal(err)
	}
	s.policies = own.Policies
	v, err := stack.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	// The engines' tokens in Vault, which Nomad's clients renew.
	if _, err := v.Logical().Write("auth/jwt-nomad/role/nomad-workloads", map[string]any{"role_type": "jwt", "token_period": tokenLife.String()}); err != nil {
		t.Fatal(err)
	}
	made, err := v.Auth().Token().CreateOrphan(&vault.TokenCreateRequest{Policies: []string{mount}, NoDefaultPolicy: true, Period: tokenLife.String()})
	if err != nil {
		t.Fatal(err)
	}
	s.vault = made.Auth.ClientToken
	s.used = append(s.used, s.vault)
	if err := s.replaceTokens(); err != nil {
		t.Fatal(err)
	}
	if err := s.replaceCertificates(); err != nil {
		t.Fatal(err)
	}
	return s
}

// env is how the service finds what is replaced.
func (s *soak) env() []string {
	cert, key := filepath.Join(s.dir, "orch.pem"), filepath.Join(s.dir, "orch-key.pem")
	return []string{
		"NOMAD_TOKEN=", "CONSUL_HTTP_TOKEN=", "VAULT_TOKEN=" + s.vault,
		"NOMAD_TOKEN_FILE=" + filepath.Join(s.dir, "nomad"), "CONSUL_HTTP_TOKEN_FILE=" + filepath.Join(s.dir, "consul"),
		"NOMAD_CLIENT_CERT=" + cert, "NOMAD_CLIENT_KEY=" + key, "CONSUL_CLIENT_CERT=" + cert, "CONSUL_CLIENT_KEY=" + key,
		"ORCH_OPS_ADDR=" + s.addr, "ORCH_LOG_LEVEL=info",
	}
}

// replaceTokens makes tokens that end by themselves. Those of before live on for half of
// their life.
func (s *soak) replaceTokens() error {
	n, _, err := s.nomad.ACLTokens().Create(&nomad.ACLToken{Name: "soak", Type: "client", Policies: []string{"orch"}, ExpirationTTL: tokenLife}, nil)
	if err != nil {
		return fmt.Errorf("nomad token: %w", err)
	}
	c, _, err := s.consul.ACL().TokenCreate(&consul.ACLToken{Description: "soak", Policies: s.policies, ExpirationTTL: tokenLife}, nil)
	if err != nil {
		return fmt.Errorf("consul token: %w", err)
	}
	s.used = append(s.used, n.SecretID, c.SecretID)
	for name, token := range map[string]string{"nomad": n.SecretID, "consul": c.SecretID} {
		file := filepath.Join(s.dir, name)
		if err := os.WriteFile(file+".next", []byte(token+"\n"), 0o600); err != nil {
			return err
		}
		if err := os.Rename(file+".next", file); err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) replaceCertificates() error {
	if _, _, err := s.authority.Issue("orch", certLife); err != nil {
		return err
	}
	return s.stack.RenewCertificates(certLife)
}
