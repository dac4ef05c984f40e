// Package testpg runs PostgreSQL servers for tests, from Debian's package, on
// free ports.
package testpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx"
)

// password needs escaping in a URL, so that every test also tests the escaping.
const password = "s3cret/p@ss word%:"

// Server is a PostgreSQL server for a test.
type Server struct {
	bin  string
	dir  string
	host string
	port int
	on   func(start func() error) error // how to start it; nil: on this host
	as   *syscall.Credential            // PostgreSQL refuses to run as root
	cmd  *exec.Cmd
	made atomic.Int64 // databases
}

// Need skips a test if PostgreSQL is not installed; in CI the test fails.
func Need(tb testing.TB) {
	tb.Helper()
	if bin() != "" {
		return
	}
	needed(tb, "PostgreSQL is not installed: apt-get install -y postgresql")
}

// needed ends a test for which a Debian package is missing.
func needed(tb testing.TB, how string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(how)
	}
	tb.Skip(how)
}

// bin returns the directory of the newest PostgreSQL, or "".
func bin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// New creates a server and starts it. Call Stop even after an error.
func New() (s *Server, err error) {
	port, err := freePort()
	if err != nil {
		return &Server{}, err
	}
	return newServer(&Server{bin: bin(), host: "127.0.0.1", port: port})
}

func freePort() (int, error) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return free.Addr().(*net.TCPAddr).Port, free.Close()
}

// NewOn is New for a server on another host: on starts a process there, and host is its
// address.
func NewOn(host string, on func(start func() error) error) (*Server, error) {
	return newServer(&Server{bin: bin(), host: host, port: 5432, on: on})
}

// Standby starts another server on this host that replicates s until [Server.Promote].
func (s *Server) Standby() (*Server, error) {
	standby, err := s.Spare()
	if err != nil {
		return standby, err
	}
	return standby, standby.Follow(s)
}

// Spare prepares another server on this host; [Server.Follow] starts it.
func (s *Server) Spare() (*Server, error) {
	spare := &Server{bin: s.bin, host: s.host, port: s.port + 1, on: s.on}
	if s.on == nil { // others may have that port
		var err error
		if spare.port, err = freePort(); err != nil {
			return spare, err
		}
	}
	return spare, spare.makeDir()
}

// Follow starts a server as the standby of another one, with a copy of its data only.
func (s *Server) Follow(primary *Server) error {
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	copied := s.command("pg_basebackup", "-D", s.data(), "-d", primary.URL("postgres"), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")
	if out, err := copied.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return s.Start()
}

// Promote makes a standby accept writes, and waits for that.
func (s *Server) Promote() error { return s.Exec("SELECT pg_promote()") }

// ReadOnly makes a server refuse writes, or accept them again. Reads keep working.
func (s *Server) ReadOnly(is bool) error {
	on := map[bool]string{true: "on", false: "off"}[is]
	for _, statement := range []string{"ALTER SYSTEM SET default_transaction_read_only = " + on, "SELECT pg_reload_conf()"} {
		if err := s.Exec(statement); err != nil {
			return err
		}
	}
	// A new session has the setting only after the existing ones have it.
	return s.until("current_setting('default_transaction_read_only') = '" + on + "'")
}

// FailOver promotes the standby of s once it has all data of s. s keeps running and accepts
// no writes.
func (s *Server) FailOver(standby *Server) error {
	if err := s.ReadOnly(true); err != nil {
		return err
	}
	// Transactions from before may still write.
	if err := s.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"); err != nil {
		return err
	}
	if err := s.until("NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND backend_xid IS NOT NULL)" +
		" AND (SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication)"); err != nil {
		return err
	}
	return standby.Promote()
}

// until waits until a condition is true for a new session.
func (s *Server) until(condition string) error {
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = s.Exec("DO $$ BEGIN ASSERT (" + condition + "); END $$"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("PostgreSQL does not reach %s: %w", condition, err)
}

// Exec runs a statement as the superuser.
func (s *Server) Exec(statement string) error {
	db, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(context.Background(), statement)
	return err
}

// makeDir creates the server's directory for the user that it runs as.
func (s *Server) makeDir() (err error) {
	if s.dir, err = os.MkdirTemp("", "orch-postgres-"); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return nil
	}
	owner, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
	gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
	s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(s.dir, int(uid), int(gid))
}

func newServer(s *Server) (_ *Server, err error) {
	if err := s.makeDir(); err != nil {
		return s, err
	}
	file := filepath.Join(s.dir, "password")
	if err := os.WriteFile(file, []byte(password), 0o644); err != nil {
		return s, err
	}
	made := s.command("initdb", "-D", s.data(), "-U", "orch", "--pwfile", file, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := made.CombinedOutput(); err != nil {
		return s, fmt.Errorf("initdb: %w: %s", err, out)
	}
	if s.on != nil { // initdb allows only connections from the same host
		hba, err := os.OpenFile(filepath.Join(s.data(), "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return s, err
		}
		_, err = hba.WriteString("host all,replication all samenet scram-sha-256\n")
		if err := errors.Join(err, hba.Close()); err != nil {
			return s, err
		}
	}
	return s, s.Start()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Start starts the server, on the same port each time, and waits until it responds.
func (s *Server) Start() error {
	s.cmd = s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-h", s.host, "-k", "", "-c", "shared_buffers=64MB")
	start := s.cmd.Start
	if s.on != nil {
		start = func() error { return s.on(s.cmd.Start) }
	}
	if err := start(); err != nil {
		return err
	}
	return answers(s.URL("postgres"))
}

// answers waits until a query succeeds.
func answers(address string) error {
	db, err := sql.Open("pgx", address)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not respond: %w", err)
		case <-tick.C:
		}
	}
}

// Halt ends the server as in an outage: it disconnects its clients.
func (s *Server) Halt() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Pause stops the server and all its workers with SIGSTOP, as if the machine hung. Resume
// continues them.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	if s.cmd == nil {
		return errors.New("PostgreSQL is not running")
	}
	err := s.cmd.Process.Signal(sig)
	// The server is signalled first, so that it starts no worker meanwhile.
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.cmd.Process.Pid))
	for field := range strings.FieldsSeq(string(children)) {
		pid, perr := strconv.Atoi(field)
		if perr == nil {
			perr = syscall.Kill(pid, sig)
		}
		if !errors.Is(perr, syscall.ESRCH) {
			err = errors.Join(err, perr)
		}
	}
	return err
}

// Stop ends the server and removes its files.
func (s *Server) Stop() {
	s.Halt()
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// URL returns the URL of a database.
func (s *Server) URL(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("orch", password),
		Host: net.JoinHostPort(s.host, strconv.Itoa(s.port)), Path: database,
	}).String()
}

// Database creates an empty database, and returns its URL.
func (s *Server) Database() (string, error) {
	name := fmt.Sprintf("t%d", s.made.Add(1))
	return s.URL(name), s.Exec("CREATE DATABASE " + name)
}
