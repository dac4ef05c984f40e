package audit

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/testpg"
)

// A new connection uses the authority and the password that are in the files of the URL at
// that time.
func TestPostgresFilesAreReadAgain(t *testing.T) {
	testpg.Need(t)
	server, err := testpg.New()
	t.Cleanup(server.Stop)
	must(t, err)
	dir := t.TempDir()
	passwords, ca := filepath.Join(dir, "passwords"), filepath.Join(dir, "ca.pem")
	change := func(password string) {
		t.Helper()
		must(t, server.Exec("ALTER ROLE app PASSWORD '"+password+"'"))
		must(t, os.WriteFile(passwords, []byte("*:*:*:*:"+password+"\n"), 0o600))
	}
	certify := func() {
		t.Helper()
		authority, err := devstack.NewAuthority(t.TempDir())
		must(t, err)
		cert, key, err := authority.Issue("postgres", time.Hour, "127.0.0.1")
		must(t, err)
		must(t, server.UseCertificate(cert, key))
		text, err := os.ReadFile(authority.CAFile())
		must(t, err)
		must(t, os.WriteFile(ca, text, 0o600))
	}
	must(t, server.Exec("CREATE ROLE app LOGIN"))
	must(t, server.Exec("CREATE DATABASE files OWNER app"))
	change("first-9x")
	certify()
	u, err := url.Parse(server.URL("files"))
	must(t, err)
	u.User = url.User("app")
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {ca}, "passfile": {passwords}}.Encode()
	l := open(t, u.String())
	_, err = l.Begin(t.Context(), Entry{Action: ActionStop})
	must(t, err)

	must(t, os.Remove(passwords)) // as between two steps of a replacement
	l.db.dropIdle()
	_, err = l.Begin(t.Context(), Entry{Action: ActionStop})
	must(t, err)

	change("second-9x")
	certify()
	// The server's processes learn of the new certificate one after the other.
	eventually(t, "a connection with the new authority and password", func() error {
		l.db.dropIdle()
		_, err := l.Begin(t.Context(), Entry{Action: ActionStop})
		return err
	})
}
