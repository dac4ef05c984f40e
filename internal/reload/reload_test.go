package reload

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logged is a log to search.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the lines since the last call.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

func newWatcher() (*Watcher, *logged) {
	l := &logged{}
	return New(hclog.New(&hclog.LoggerOptions{Output: l, Level: hclog.Info})), l
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestChanges: a file is loaded when its content changes, wherever its change comes from,
// and a file that cannot be used is reported once.
func TestChanges(t *testing.T) {
	dir := t.TempDir()
	file, beside := filepath.Join(dir, "token"), filepath.Join(t.TempDir(), "directory")
	write(t, file, "one")
	if err := os.Mkdir(beside, 0o700); err != nil {
		t.Fatal(err)
	}
	w, log := newWatcher()
	got, loads := "", 0
	err := w.Add("of the test", "TOKEN_FILE", []string{file, "", beside}, func() (*x509.Certificate, error) {
		loads++
		token, err := Token(file)
		if err == nil && token == "bad" {
			err = errors.New("not a token")
		}
		if err == nil {
			got = token
		}
		return nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	look := func(wantLoads int, want, says string) {
		t.Helper()
		loads = 0
		w.look(time.Now())
		if loads != wantLoads || got != want {
			t.Errorf("%d loads of %q, want %d of %q", loads, got, wantLoads, want)
		}
		if text := log.take(); (says == "") != (text == "") || !strings.Contains(text, says) {
			t.Errorf("the log has %q, want %q", text, says)
		}
	}
	look(0, "one", "")
	write(t, file, "two\n")
	look(1, "two", "read again")
	look(0, "two", "")
	write(t, file, "bad")
	look(1, "two", "") // it may be half of a change
	look(1, "two", "cannot be used")
	look(0, "two", "")
	write(t, file, "three")
	look(1, "three", "read again")
	// As Kubernetes and Nomad do: a new file in place of the old one.
	write(t, file+".next", "four")
	if err := os.Rename(file+".next", file); err != nil {
		t.Fatal(err)
	}
	look(1, "four", "read again")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	look(1, "four", "")
	look(1, "four", "cannot be used")
	write(t, file, "four") // as it was before
	look(1, "four", "read again")
	write(t, filepath.Join(beside, "another"), "x")
	look(1, "four", "read again")

	loads = 0
	if w.Reload(); loads != 1 || !strings.Contains(log.take(), "read again") {
		t.Errorf("%d loads on demand", loads)
	}
	write(t, file, "bad")
	if w.Reload(); !strings.Contains(log.take(), "cannot be used") {
		t.Error("a failure on demand is not reported at once")
	}
}

// TestRun: files are compared all the time.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "one")
	w, _ := newWatcher()
	tokens := make(chan string, 10)
	if err := w.Add("of the test", "TOKEN_FILE", []string{file}, func() (*x509.Certificate, error) {
		token, err := Token(file)
		tokens <- token
		return nil, err
	}); err != nil {
		t.Fatal(err)
	}
	<-tokens
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	write(t, file, "two")
	select {
	case got := <-tokens:
		if got != "two" && got != "" { // "": the file was read while it was written
			t.Errorf("got %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("the change is not noticed")
	}
	cancel()
	running.Wait()
}

// TestFirstLoadFails: files that cannot be used at the start are an error.
func TestFirstLoadFails(t *testing.T) {
	w, _ := newWatcher()
	if err := w.Add("of the test", "X", []string{"/no/such/file"}, func() (*x509.Certificate, error) { return nil, errors.New("no") }); err == nil {
		t.Error("no error")
	}
	if w.Reload(); len(w.groups) > 0 {
		t.Error("the files are watched")
	}
}

// TestCertificateEnds: the log warns in the last fifth of a certificate's life, once a day,
// and not of a certificate that was replaced.
func TestCertificateEnds(t *testing.T) {
	from := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const life = 100 * time.Hour
	own := made(t, from, from.Add(life))
	w, log := newWatcher()
	if err := w.Add("of the test", "CERT_FILE", []string{t.TempDir()}, func() (*x509.Certificate, error) { return own, nil }); err != nil {
		t.Fatal(err)
	}
	look := func(at time.Duration, says ...string) {
		t.Helper()
		w.look(from.Add(at))
		text := log.take()
		if len(says) == 0 && text != "" {
			t.Errorf("at %s: %q", at, text)
		}
		for _, s := range says {
			if !strings.Contains(text, s) {
				t.Errorf("at %s: %q, want %q", at, text, s)
			}
		}
	}
	end := from.Add(life).Format(time.RFC3339)
	look(79 * time.Hour)
	look(81*time.Hour, "[WARN]", "CERT_FILE", end)
	look(82 * time.Hour)
	look(101*time.Hour - time.Minute)
	look(106*time.Hour, "[ERROR]", "expired", end)
	if got := w.Ends()["of the test"]; !got.Equal(from.Add(life)) {
		t.Errorf("it ends at %s", got)
	}

	own = made(t, from.Add(200*time.Hour), from.Add(300*time.Hour))
	w.Reload()
	log.take()
	look(210 * time.Hour)
	look(290*time.Hour, "[WARN]", "CERT_FILE")
}

func made(t *testing.T, from, to time.Time) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(from.Unix()), NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
