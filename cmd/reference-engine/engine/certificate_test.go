package engine

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pemFile returns a self-signed certificate for 127.0.0.1 with its key, in one file as orch
// gives it to an engine.
func pemFile(t *testing.T, serial int64) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
}

// TestTLS: with a file the engine serves HTTP/1.1 over TLS, and nothing without TLS. It
// uses a certificate that replaces its own from the next connection on, and keeps its own
// if the file cannot be used.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "tls.pem")
	replace := func(text []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".next", text, 0o600), os.Rename(file+".next", file)); err != nil {
			t.Fatal(err)
		}
	}
	replace(pemFile(t, 1))
	vars := map[string]string{"HOST": "127.0.0.1", "PORT": "0", "ENGINE_KEY_HASH": hashOf(testKey), "SQLITE_DB_PATH": filepath.Join(dir, "brain.sqlite"), "ENGINE_TLS_FILE": file}
	cfg, err := LoadConfig([]string{"e"}, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	brain, err := OpenBrain(t.Context(), cfg.BrainPath)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := newKeyring(cfg.KeySource)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	s := &server{cfg: cfg, brain: brain, keys: keys, log: slog.New(slog.DiscardHandler), started: time.Now(), stop: stop, exit: os.Exit}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, ln, nil, stop) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ended, brain.Close(context.Background())); err != nil {
			t.Error(err)
		}
	}()
	get := func(scheme string) (*http.Response, error) {
		tr := &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the serial number identifies the certificate
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(scheme + "://" + ln.Addr().String() + "/health")
		if err == nil {
			_ = resp.Body.Close()
		}
		return resp, err
	}
	serves := func(serial int64) {
		t.Helper()
		resp, err := get("https")
		if err != nil || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
			t.Fatalf("%+v, %v", resp, err)
		}
		if now := resp.TLS.PeerCertificates[0].SerialNumber; now.Int64() != serial {
			t.Errorf("it serves certificate %d, want %d", now, serial)
		}
	}
	serves(1)
	if resp, err := get("http"); err == nil && resp.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %d", resp.StatusCode)
	}
	replace(pemFile(t, 2))
	serves(2)
	replace(bytes.Split(pemFile(t, 3), []byte("-----BEGIN PRIVATE"))[0])
	serves(2)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	serves(2)
	replace(pemFile(t, 4))
	serves(4)

	missing := filepath.Join(dir, "missing.pem")
	if _, err := newCertificate(missing, s.log); err == nil {
		t.Error("an engine without its certificate would serve")
	}
}
