package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

// certificate writes a certificate and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = dir+"/cert.pem", dir+"/key.pem"
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return cert, key
}

// TestPlainHTTPStaysOnTheMachine: without TLS the service does not listen where others
// could read keys, unless that is allowed.
func TestPlainHTTPStaysOnTheMachine(t *testing.T) {
	cert, key := certificate(t)
	other, otherKey := certificate(t)
	need := []string{"ORCH_ADMIN_KEY=" + adminKey, "ORCH_ENGINE_IMAGE=registry/engine:1"}
	for name, c := range map[string]struct {
		vars []string
		want []string // the variables with mistakes
	}{
		"all addresses":                      {nil, []string{"ORCH_TLS_CERT_FILE"}},
		"another machine's":                  {[]string{"ORCH_ADDR=10.0.0.1:8000"}, []string{"ORCH_TLS_CERT_FILE"}},
		"a name":                             {[]string{"ORCH_ADDR=orch.example.com:8000"}, []string{"ORCH_TLS_CERT_FILE"}},
		"all of IPv6":                        {[]string{"ORCH_ADDR=[::]:8000"}, []string{"ORCH_TLS_CERT_FILE"}},
		"loopback":                           {[]string{"ORCH_ADDR=127.0.0.1:8000"}, nil},
		"loopback of IPv6":                   {[]string{"ORCH_ADDR=[::1]:8000"}, nil},
		"localhost":                          {[]string{"ORCH_ADDR=localhost:8000"}, nil},
		"allowed":                            {[]string{"ORCH_ALLOW_HTTP=true"}, nil},
		"TLS":                                {[]string{"ORCH_TLS_CERT_FILE=" + cert, "ORCH_TLS_KEY_FILE=" + key}, nil},
		"a certificate without its key":      {[]string{"ORCH_TLS_CERT_FILE=" + cert}, []string{"ORCH_TLS_CERT_FILE"}},
		"a key without its certificate":      {[]string{"ORCH_TLS_KEY_FILE=" + key}, []string{"ORCH_TLS_KEY_FILE"}},
		"the key of another certificate":     {[]string{"ORCH_TLS_CERT_FILE=" + other, "ORCH_TLS_KEY_FILE=" + key}, []string{"ORCH_TLS_CERT_FILE"}},
		"authorities of clients":             {[]string{"ORCH_TLS_CERT_FILE=" + cert, "ORCH_TLS_KEY_FILE=" + key, "ORCH_TLS_CLIENT_CA_FILE=" + cert}, nil},
		"a key in place of authorities":      {[]string{"ORCH_TLS_CERT_FILE=" + cert, "ORCH_TLS_KEY_FILE=" + key, "ORCH_TLS_CLIENT_CA_FILE=" + otherKey}, []string{"ORCH_TLS_CLIENT_CA_FILE"}},
		"authorities of clients, plain HTTP": {[]string{"ORCH_ALLOW_HTTP=true", "ORCH_TLS_CLIENT_CA_FILE=" + cert}, []string{"ORCH_TLS_CLIENT_CA_FILE"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(append(slices.Clone(need), c.vars...))
			if got := namesIn(err); !slices.Equal(got, c.want) {
				t.Errorf("named %v, want %v: %v", got, c.want, err)
			}
		})
	}
}
