package audit

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func openErr(t *testing.T, url string) error {
	t.Helper()
	l, err := Open(t.Context(), url, Options{Log: hclog.NewNullLogger()})
	if err == nil {
		must(t, l.Close())
		t.Fatalf("%s was opened", url)
	}
	return err
}

func TestSQLiteFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	l := open(t, "sqlite://data/of%20orch/audit.db")
	_, err := l.Begin(t.Context(), Entry{})
	must(t, err)
	for name, want := range map[string]os.FileMode{
		"data": 0o700, "data/of orch": 0o700, "data/of orch/audit.db": 0o600, "data/of orch/audit.db-wal": 0o600,
	} {
		info, err := os.Stat(name)
		must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

// TestSQLitePragmas: the guarantee about power failures depends on them.
func TestSQLitePragmas(t *testing.T) {
	l := open(t, sqliteURL(t))
	var journal string
	var synchronous int
	must(t, l.db.writer.QueryRow(`PRAGMA journal_mode`).Scan(&journal))
	must(t, l.db.writer.QueryRow(`PRAGMA synchronous`).Scan(&synchronous))
	if journal != "wal" || synchronous != 2 {
		t.Errorf("journal %s, synchronous %d", journal, synchronous)
	}
}

func TestSecondProcess(t *testing.T) {
	url := sqliteURL(t)
	_, kill := startChild(t, url)
	err := openErr(t, url)
	wantErr(t, err, ErrInUse)
	if !strings.Contains(err.Error(), "PostgreSQL") || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("the reason is missing: %v", err)
	}
	link := filepath.Join(t.TempDir(), "other-name.db")
	must(t, os.Symlink(strings.TrimPrefix(url, "sqlite://"), link))
	wantErr(t, openErr(t, "sqlite://"+link), ErrInUse)
	kill()
	open(t, url)
}

func TestReopen(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		first, err := Open(t.Context(), url, Options{Log: hclog.NewNullLogger()})
		must(t, err)
		must(t, first.Record(t.Context(), Entry{ProductID: "p1", EngineID: "e1", Action: ActionProvision}))
		must(t, first.Close())
		second := open(t, url)
		must(t, second.Record(t.Context(), Entry{ProductID: "p1", EngineID: "e1", Action: ActionDestroy}))
		if got := list(t, second, Query{}); len(got) != 2 {
			t.Errorf("%d rows", len(got))
		}
		n, err := second.Numbers(t.Context(), "p1")
		must(t, err)
		if n.TotalDestroys != 1 {
			t.Errorf("%d destroys", n.TotalDestroys)
		}
	})
}

// TestMigrateTogether lets many replicas start concurrently on an empty database.
func TestMigrateTogether(t *testing.T) {
	url := emptyDatabase(t, postgres(t))
	var work sync.WaitGroup
	errs := make(chan error, 8)
	for range cap(errs) {
		work.Go(func() {
			l, err := Open(t.Context(), url, Options{Log: hclog.NewNullLogger()})
			if err == nil {
				err = errors.Join(l.Ping(t.Context()), l.Close())
				if !l.db.ready.Load() {
					err = errors.New("opened without its tables")
				}
			}
			errs <- err
		})
	}
	work.Wait()
	close(errs)
	for err := range errs {
		must(t, err)
	}
}

func TestNewerSchema(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l, err := Open(t.Context(), url, Options{Log: hclog.NewNullLogger()})
		must(t, err)
		_, err = l.db.writer.Exec(`INSERT INTO audit_migrations (version) VALUES (99)`)
		must(t, errors.Join(err, l.Close()))
		wantErr(t, openErr(t, url), errNewer)
	})
}

func TestBadURL(t *testing.T) {
	for _, url := range []string{
		"", "sqlite", "sqlite://", "sqlite:///x?mode=ro", "sqlite:///%zz", "mysql://u:pw-9x@h/d", "orch:pw-9x@host/db",
		"postgres://u:pw-9x@h:port/d", "postgres://u:pw-9x%@h/d", "postgres://u:pw-9x@h/d?sslmode=nonsense",
		"postgres://u@h/d?password=pw-9x&connect_timeout=pw-9x", "postgres://u:pw-9x@h/d?sslcert=/nowhere/c&sslkey=/nowhere/k",
		"postgres://u:pw-9x @h/d", "postgresql://u:pw-9x@[h/d",
	} {
		if err := openErr(t, url); strings.Contains(err.Error(), "pw-9x") || strings.Contains(fmt.Sprintf("%+v", err), "pw-9x") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
}

// TestUnusable: the error names the file and the remedy.
func TestUnusable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.db")
	must(t, os.WriteFile(path, []byte(strings.Repeat("no database ", 100)), 0o600))
	err := openErr(t, "sqlite://"+path)
	wantErr(t, err, ErrUnusable)
	if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("which file, and what is to be done? %v", err)
	}
	err = openErr(t, "sqlite:///dev/null/audit.db")
	wantErr(t, err, ErrUnusable)
	if errors.Is(err, ErrUnavailable) {
		t.Errorf("only an operator can mend it: %v", err)
	}
}

// TestRelativeFile: nobody expects a service's files in /.
func TestRelativeFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		wd, file string
		warns    bool
	}{{"/", strings.TrimPrefix(dir, "/") + "/audit.db", true}, {"/", dir + "/audit.db", false}, {dir, "audit.db", false}} {
		t.Chdir(c.wd)
		var said bytes.Buffer
		l, err := Open(t.Context(), "sqlite://"+c.file, Options{Log: hclog.New(&hclog.LoggerOptions{Output: &said})})
		must(t, err)
		must(t, l.Close())
		if got := strings.Contains(said.String(), "[WARN]"); got != c.warns {
			t.Errorf("%s in %s: it logged %q", c.file, c.wd, said.String())
		}
	}
}

// TestDamagedFile overwrites a page in the middle of the file.
func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.db")
	l, err := Open(t.Context(), "sqlite://"+path, Options{Log: hclog.NewNullLogger()})
	must(t, err)
	must(t, begun(t.Context(), l, 200))
	must(t, l.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	for page := range int64(8) {
		_, err = f.WriteAt([]byte(strings.Repeat("\xff", 512)), (page+12)<<12)
		must(t, err)
	}
	must(t, f.Close())
	wantErr(t, openErr(t, "sqlite://"+path), ErrUnusable)
}

// TestRefusedLogin: a wrong password is not an outage, and is not shown.
func TestRefusedLogin(t *testing.T) {
	s := postgres(t)
	url := strings.Replace(s.URL("postgres"), "orch:", "orch:wrong-pw-", 1)
	if err := openErr(t, url); strings.Contains(err.Error(), "wrong-pw-") || !strings.Contains(err.Error(), "authentication failed") {
		t.Errorf("got %v", err)
	}
	if err := openErr(t, s.URL("no_such_database")); strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

// TestOutage stops the server and starts it again: calls fail at once meanwhile, and a
// replica that started during the outage works after it too.
func TestOutage(t *testing.T) {
	s := ownPostgres(t)
	url := emptyDatabase(t, s)
	s.Halt()
	late := open(t, url)
	_, err := late.Begin(t.Context(), Entry{})
	wantErr(t, err, ErrUnavailable)
	must(t, s.Start())
	eventually(t, "begun in the outage, works after it", func() error { return late.Ping(t.Context()) })

	l := open(t, url)
	id, err := l.Begin(t.Context(), Entry{ProductID: "p1", Action: ActionProvision})
	must(t, err)
	// The pool has more than one connection, so that all of them are replaced.
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() { _ = l.Ping(t.Context()) })
	}
	work.Wait()

	s.Halt()
	began := time.Now()
	wantErr(t, l.Ping(t.Context()), ErrUnavailable)
	_, err = l.Begin(t.Context(), Entry{})
	wantErr(t, err, ErrUnavailable)
	wantErr(t, l.Complete(t.Context(), id, Completion{}), ErrUnavailable)
	wantErr(t, l.Record(t.Context(), Entry{}), ErrUnavailable)
	_, err = l.Entries(t.Context(), Query{})
	wantErr(t, err, ErrUnavailable)
	_, err = l.Numbers(t.Context(), "p1")
	wantErr(t, err, ErrUnavailable)
	if took := time.Since(began); took > CallTimeout {
		t.Errorf("six refused calls took %v", took)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error shows the password: %v", err)
	}

	must(t, s.Start())
	eventually(t, "the row is completed after the outage", func() error { return l.Complete(t.Context(), id, Completion{}) })
	eventually(t, "health is well again", func() error { return l.Ping(t.Context()) })
	if got := list(t, l, Query{}); len(got) != 1 || got[0].Outcome != OutcomeOK {
		t.Errorf("after the outage: %+v", got)
	}
}

// TestSilentServer uses a server that accepts connections but does not respond.
func TestSilentServer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = silent.Close() }()
	began := time.Now()
	l := open(t, "postgres://u:pw@"+silent.Addr().String()+"/d")
	_, err = l.Begin(t.Context(), Entry{})
	wantErr(t, err, ErrUnavailable)
	if took := time.Since(began); took > 4*CallTimeout {
		t.Errorf("took %v", took)
	}
}

// TestSQLiteLocked lets another process hold the file's lock, as a backup may.
func TestSQLiteLocked(t *testing.T) {
	url := sqliteURL(t)
	l := open(t, url)
	other, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite://"))
	must(t, err)
	defer func() { _ = other.Close() }()
	conn, err := other.Conn(t.Context())
	must(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
	must(t, err)
	began := time.Now()
	_, err = l.Begin(t.Context(), Entry{})
	wantErr(t, err, ErrUnavailable)
	if took := time.Since(began); took > 2*CallTimeout {
		t.Errorf("took %v", took)
	}
	list(t, l, Query{}) // reads still work
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	wantErr(t, l.Ping(ctx), ErrUnavailable) // a write has failed, and still would
	_, err = conn.ExecContext(t.Context(), "ROLLBACK")
	must(t, err)
	_, err = l.Begin(t.Context(), Entry{})
	must(t, err)
	must(t, l.Ping(t.Context()))
}

// A right that is taken away is told from an outage, and the log works again as soon as the
// right is back.
func TestRightTakenAway(t *testing.T) {
	whole := emptyDatabase(t, postgres(t))
	admin, err := sql.Open("pgx", whole)
	must(t, err)
	defer func() { _ = admin.Close() }()
	run := func(statement string) {
		t.Helper()
		_, err := admin.ExecContext(t.Context(), statement)
		must(t, err)
	}
	run(`CREATE ROLE limited LOGIN PASSWORD 'of-limited'`)
	run(`GRANT ALL ON SCHEMA public TO limited`)
	at, err := url.Parse(whole)
	must(t, err)
	at.User = url.UserPassword("limited", "of-limited")
	l := open(t, at.String())
	must(t, l.Ping(t.Context()))
	run(`REVOKE INSERT ON audit_entries FROM limited`)
	_, err = l.Begin(t.Context(), Entry{})
	wantErr(t, err, ErrDenied)
	wantErr(t, err, ErrUnavailable)
	wantErr(t, l.Ping(t.Context()), ErrDenied)
	run(`GRANT INSERT ON audit_entries TO limited`)
	eventually(t, "works again", func() error { return l.Ping(t.Context()) })
}
