package cli

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestCertificatesAndTokensAreReplaced: on locked agents, a service whose client certificate
// expires soon is given another in its files, and other tokens, while it is called all the
// time. No call fails, also when the old certificate has expired and the old tokens are
// revoked. The service starts with a certificate that does not expire: it may start slowly.
func TestCertificatesAndTokensAreReplaced(t *testing.T) {
	const prefix, life = "reload/", time.Minute
	ctx := t.Context()
	stack := harness.OwnStack(t, devstack.Config{Locked: true})
	access, _ := harness.Deploy(t, stack, prefix)
	dir := t.TempDir()
	authority := stack.Authority(dir)
	issue := func(life time.Duration) (cert, key string) {
		t.Helper()
		cert, key, err := authority.Issue("orch", life)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	replace := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file+".next", []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
		return file
	}
	cert, key := issue(time.Hour)
	p := harness.StartProcess(t, stack, prefix, "NOMAD_CLIENT_CERT="+cert, "NOMAD_CLIENT_KEY="+key, "CONSUL_CLIENT_CERT="+cert, "CONSUL_CLIENT_KEY="+key,
		"NOMAD_TOKEN=", "CONSUL_HTTP_TOKEN=", "VAULT_TOKEN=",
		"NOMAD_TOKEN_FILE="+replace("nomad", access.NomadToken), "CONSUL_HTTP_TOKEN_FILE="+replace("consul", access.ConsulToken), "VAULT_TOKEN_FILE="+replace("vault", access.VaultToken))
	made, err := p.RegisterProduct(ctx, "reload", "Reload", harness.PolicyOf(t, map[string]any{"rate_limit_rpm": 1000000}))
	if err != nil {
		t.Fatal(err)
	}
	// A store on a busy machine may respond too late, which is 503. Refused tokens are not
	// retried, and the log must not say that a call failed because of a certificate.
	c := &client.Client{BaseURL: p.BaseURL, PlatformKey: made.PlatformAPIKey, Retry: client.RetryPolicy{Attempts: 10}}
	if _, err := c.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}

	var calls atomic.Int64
	ended := make(chan struct{})
	var loading sync.WaitGroup
	stop := sync.OnceFunc(func() { close(ended); loading.Wait() })
	defer stop()
	call := func(every time.Duration, do func() error) {
		loading.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-ended:
					return
				case <-tick.C:
				}
				if err := do(); err != nil {
					t.Errorf("after %d calls: %v", calls.Load(), err)
				}
				calls.Add(1)
			}
		})
	}
	call(20*time.Millisecond, func() error { // reads Consul
		a, err := c.Admit(ctx, "u", client.AdmitOptions{})
		if err == nil && !a.Admitted {
			err = fmt.Errorf("not admitted: %s", a.Reason)
		}
		return err
	})
	call(100*time.Millisecond, func() error { // asks all stores
		_, err := p.Health(ctx)
		return err
	})
	rotations := 0
	call(time.Second, func() error { // writes to all stores
		rotations++
		return harness.ErrOf(c.RotateKey(ctx, "u", client.IdempotencyKey(fmt.Sprint("rotation-", rotations))))
	})
	lines := func(what ...string) (n int) {
		for line := range strings.Lines(p.Log.String()) {
			if has(line, what) {
				n++
			}
		}
		return n
	}
	logged := func(before int, what ...string) {
		t.Helper()
		harness.Eventually(t, "the log has "+strings.Join(what, " and "), func() error {
			if lines(what...) <= before {
				return fmt.Errorf("no such line after %d", before)
			}
			return nil
		})
	}
	more := func(n int64) {
		t.Helper()
		from := calls.Load()
		harness.Eventually(t, "calls are made", func() error {
			if calls.Load() < from+n {
				return fmt.Errorf("%d calls", calls.Load()-from)
			}
			return nil
		})
	}

	more(50)
	issue(life)
	expires := time.Now().Add(life)
	end := expires.UTC().Format("2006-01-02T15")
	for _, variable := range []string{"NOMAD_CLIENT_CERT", "CONSUL_CLIENT_CERT"} {
		logged(0, "[WARN]", "a certificate expires soon", variable, end)
	}
	more(50)
	nomadAgain, consulAgain := lines("files were read again", "NOMAD_CLIENT_CERT"), lines("files were read again", "CONSUL_CLIENT_CERT")
	issue(time.Hour)
	logged(nomadAgain, "files were read again", "NOMAD_CLIENT_CERT")
	logged(consulAgain, "files were read again", "CONSUL_CLIENT_CERT")
	harness.Eventually(t, "the certificate of a minute has expired", func() error {
		if left := time.Until(expires); left > 0 {
			return fmt.Errorf("%s left", left)
		}
		return nil
	})
	p.Signal(t, syscall.SIGHUP) // which closes idle connections: new ones need the new certificate
	more(100)

	others := copyTokens(t, stack, access)
	replace("nomad", others.NomadToken)
	replace("consul", others.ConsulToken)
	replace("vault", others.VaultToken)
	for _, variable := range []string{"NOMAD_TOKEN_FILE", "CONSUL_HTTP_TOKEN_FILE", "VAULT_TOKEN_FILE"} {
		logged(0, "files were read again", "variables="+variable, "changed=true") // SIGHUP logs it without a change
	}
	revokeTokens(t, stack, access)
	more(200)
	stop()
	t.Logf("%d calls", calls.Load())
	if n := lines("request failed", "tls: "); n > 0 {
		t.Errorf("%d calls failed because of a certificate", n)
	}
	for _, store := range []string{"nomad", "consul"} { // whose new tokens expire
		harness.Eventually(t, "the end of the token for "+store+" is known", func() error {
			left, err := metric(p, `orch_token_expires_seconds{store="`+store+`"}`)
			if err == nil && (left <= 0 || left > othersLive.Seconds()) {
				t.Errorf("it expires in %g s", left)
			}
			return err
		})
	}
	for _, token := range []string{access.NomadToken, access.ConsulToken, access.VaultToken, others.NomadToken, others.ConsulToken, others.VaultToken} {
		if strings.Contains(p.Log.String(), token) {
			t.Error("the log has a token")
		}
	}
}

// opsAddr matches the address of a process's listener for operators in its log.
var opsAddr = regexp.MustCompile(`ops_addr="?([0-9.:]+)`)

// metric returns a series of a process.
func metric(p *harness.Process, series string) (float64, error) {
	at := opsAddr.FindStringSubmatch(p.Log.String())
	if at == nil {
		return 0, fmt.Errorf("the log has no address")
	}
	resp, err := http.Get("http://" + at[1] + "/metrics")
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, series+" "); found {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no series %s", series)
}

// has reports whether a line has all of these words.
func has(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

// othersLive is the lifetime of the tokens for Nomad and Consul that copyTokens makes.
const othersLive = 12 * time.Hour

// copyTokens makes other tokens with the same rights.
func copyTokens(t *testing.T, stack *devstack.Stack, of devstack.Access) devstack.Access {
	t.Helper()
	n, c := operators(t, stack)
	v, err := stack.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	other := of
	self, _, err := n.ACLTokens().Self(&nomad.QueryOptions{AuthToken: of.NomadToken})
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := n.ACLTokens().Create(&nomad.ACLToken{Name: "other", Type: self.Type, Policies: self.Policies, ExpirationTTL: othersLive}, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.NomadToken = made.SecretID
	own, _, err := c.ACL().TokenReadSelf(&consul.QueryOptions{Token: of.ConsulToken})
	if err != nil {
		t.Fatal(err)
	}
	clone, _, err := c.ACL().TokenCreate(&consul.ACLToken{Description: "other", Policies: own.Policies, ExpirationTTL: othersLive}, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.ConsulToken = clone.SecretID
	secret, err := v.Auth().Token().Lookup(of.VaultToken)
	if err != nil {
		t.Fatal(err)
	}
	policies, err := secret.TokenPolicies()
	if err != nil {
		t.Fatal(err)
	}
	another, err := v.Auth().Token().CreateOrphan(&vault.TokenCreateRequest{Policies: policies, Period: "1h", NoDefaultPolicy: true})
	if err != nil {
		t.Fatal(err)
	}
	other.VaultToken = another.Auth.ClientToken
	return other
}

func revokeTokens(t *testing.T, stack *devstack.Stack, tokens devstack.Access) {
	t.Helper()
	n, c := operators(t, stack)
	v, err := stack.VaultClient()
	if err != nil {
		t.Fatal(err)
	}
	self, _, err := n.ACLTokens().Self(&nomad.QueryOptions{AuthToken: tokens.NomadToken})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ACLTokens().Delete(self.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	own, _, err := c.ACL().TokenReadSelf(&consul.QueryOptions{Token: tokens.ConsulToken})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ACL().TokenDelete(own.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
	if err := v.Auth().Token().RevokeOrphan(tokens.VaultToken); err != nil {
		t.Fatal(err)
	}
}

// operators are clients that may do everything.
func operators(t *testing.T, stack *devstack.Stack) (*nomad.Client, *consul.Client) {
	t.Helper()
	n, err := nomad.NewClient(stack.NomadConfig())
	if err != nil {
		t.Fatal(err)
	}
	c, err := consul.NewClient(stack.ConsulConfig())
	if err != nil {
		t.Fatal(err)
	}
	return n, c
}
