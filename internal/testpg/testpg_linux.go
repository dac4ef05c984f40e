// Package testpg runs PostgreSQL servers for tests, from Debian's package, on
// free ports.
package testpg

import (
	"context"
	"database/sql"
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

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// password has what needs escaping in a URL, so that every test of it
// also tests that.
const password = "s3cret/p@ss word%:"

// Server is a PostgreSQL server of a test's own.
type Server struct {
	bin  string
	dir  string
	port int
	as   *syscall.Credential // PostgreSQL refuses to run as root
	cmd  *exec.Cmd
	made atomic.Int64 // databases
}

// Need skips a test where PostgreSQL is not installed, which CI does not allow.
func Need(tb testing.TB) {
	tb.Helper()
	if bin() != "" {
		return
	}
	const how = "no PostgreSQL here: apt-get install -y postgresql"
	if os.Getenv("CI") == "true" {
		tb.Fatal(how)
	}
	tb.Skip(how)
}

// bin is the folder of the newest PostgreSQL, "" when there is none.
func bin() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// New makes a server's files and starts it. Stop ends it, also after an error.
func New() (s *Server, err error) {
	s = &Server{bin: bin()}
	if s.dir, err = os.MkdirTemp("", "orch-postgres-"); err != nil {
		return s, err
	}
	if os.Getuid() == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			return s, err
		}
		uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
		gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
			return s, err
		}
	}
	file := filepath.Join(s.dir, "password")
	if err := os.WriteFile(file, []byte(password), 0o644); err != nil {
		return s, err
	}
	made := s.command("initdb", "-D", s.data(), "-U", "orch", "--pwfile", file, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := made.CombinedOutput(); err != nil {
		return s, fmt.Errorf("initdb: %w: %s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return s, err
	}
	s.port = free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		return s, err
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

// Start starts the server, on the same port each time, and waits until it answers.
func (s *Server) Start() error {
	s.cmd = s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1", "-k", "", "-c", "shared_buffers=64MB")
	if err := s.cmd.Start(); err != nil {
		return err
	}
	db, err := sql.Open("pgx", s.URL("postgres"))
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
			return fmt.Errorf("PostgreSQL does not answer: %w", err)
		case <-tick.C:
		}
	}
}

// Halt ends the server as an outage does: it drops its clients.
func (s *Server) Halt() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Stop ends the server and removes its files.
func (s *Server) Stop() {
	s.Halt()
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// URL is where a database is.
func (s *Server) URL(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("orch", password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: database,
	}).String()
}

// Database makes an empty database and returns its URL.
func (s *Server) Database() (string, error) {
	db, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("t%d", s.made.Add(1))
	_, err = db.ExecContext(context.Background(), "CREATE DATABASE "+name)
	return s.URL(name), err
}
