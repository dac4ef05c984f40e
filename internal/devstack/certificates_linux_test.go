package devstack

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
)

// checkCertificates: an engine's identity gets certificates with its own name only, and no
// other identity gets one.
func checkCertificates(t *testing.T, s *Stack) {
	if _, err := s.EnginePKI(t.Context()); err != nil {
		t.Fatal(err)
	}
	login := func(is identities, role string) (*vaultapi.Client, error) {
		as, err := s.vaultClient("")
		if err != nil {
			t.Fatal(err)
		}
		login, err := as.Logical().WriteWithContext(t.Context(), "auth/jwt-nomad/login", map[string]any{"role": role, "jwt": is.vault})
		if err == nil {
			as.SetToken(login.Auth.ClientToken)
		}
		return as, err
	}
	as := func(is identities, role string) *vaultapi.Client {
		t.Helper()
		client, err := login(is, role)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	own, other := runIdentified(t, s, s.Namespace, "engine-certified"), runIdentified(t, s, s.Namespace, "engine-neighbour")
	const issue = "pki-engines/issue/engine"
	asks := func(common string, more ...string) map[string]any {
		data := map[string]any{"common_name": common, "ip_sans": loopback}
		for i := 0; i < len(more); i += 2 {
			data[more[i]] = more[i+1]
		}
		return data
	}
	const name, neighbours = "engine-certified.engine.orch", "engine-neighbour.engine.orch"
	engine := as(own, "engine-tls")
	as(other, "engine-tls") // a later login of another engine changes nothing
	for what, tc := range map[string]struct {
		path string
		data map[string]any
		may  bool
	}{
		"its own name":              {issue, asks(name), true},
		"another engine's name":     {issue, asks(neighbours), false},
		"both names":                {issue, asks(name, "alt_names", neighbours), false},
		"another engine's as a URI": {issue, asks(name, "uri_sans", "spiffe://"+neighbours), false},
		"another kind of name":      {issue, asks(name, "other_sans", "1.3.6.1.4.1.311.20.2.3;utf8:"+neighbours), false},
		"a name below its own":      {issue, asks("a." + name), false},
		"all names below its own":   {issue, asks("*." + name), false},
		"all engines":               {issue, asks("*.engine.orch"), false},
		"the domain":                {issue, asks("engine.orch"), false},
		"the machine":               {issue, asks("localhost"), false},
		"a service's name":          {issue, asks("orch.example.com"), false},
		"no name":                   {issue, asks(""), false},
		"a life of its own choice":  {issue, asks(name, "ttl", "8760h"), true}, // it is cut, below
		"a request of its own":      {"pki-engines/sign/engine", asks(name), false},
		"a verbatim request":        {"pki-engines/sign-verbatim", asks(name), false},
		"the role":                  {"pki-engines/roles/engine", map[string]any{"allow_any_name": true}, false},
		"another authority":         {"pki-engines/root/generate/internal", asks(name), false},
	} {
		t.Run(what, func(t *testing.T) {
			secret, err := engine.Logical().WriteWithContext(t.Context(), tc.path, tc.data)
			if !tc.may {
				var refused *vaultapi.ResponseError
				if !errors.As(err, &refused) || refused.StatusCode != http.StatusForbidden && refused.StatusCode != http.StatusBadRequest {
					t.Fatalf("%+v, %v, want a refusal", secret, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text, _ := secret.Data["certificate"].(string)
			block, _ := pem.Decode([]byte(text))
			if block == nil {
				t.Fatalf("the certificate is %q", text)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Join(cert.DNSNames, ",") != name || len(cert.IPAddresses) != 1 || len(cert.EmailAddresses)+len(cert.URIs) > 0 || cert.IsCA {
				t.Errorf("it is for %v, %v, %v, %v", cert.DNSNames, cert.IPAddresses, cert.EmailAddresses, cert.URIs)
			}
			if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
				t.Errorf("it is good for %v, want servers only", cert.ExtKeyUsage)
			}
			if life := time.Until(cert.NotAfter); life > 169*time.Hour {
				t.Errorf("it is valid for %s", life)
			}
		})
	}
	// The provider keys are read by the same login.
	_, err := engine.Logical().ReadWithContext(t.Context(), "orch/data/engine-env")
	checkRead(t, "the provider keys", err, true)
	_, err = as(own, "nomad-workloads").Logical().WriteWithContext(t.Context(), issue, asks(name))
	checkRead(t, "a certificate for an engine that serves plain HTTP", err, false)
	for _, stranger := range []struct{ namespace, job string }{{s.Namespace, "stranger"}, {elsewhere, "engine-certified"}, {"default", "engine-certified"}} {
		if _, err := login(runIdentified(t, s, stranger.namespace, stranger.job), "engine-tls"); err == nil || !strings.Contains(err.Error(), "does not match any associated bound claim values") {
			t.Errorf("the login of %s in %s: %v, want a refusal of its claims", stranger.job, stranger.namespace, err)
		}
	}
}
