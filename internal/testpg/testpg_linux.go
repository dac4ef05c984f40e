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
