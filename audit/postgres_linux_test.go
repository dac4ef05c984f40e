package audit

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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// postgresPassword has what needs escaping in a URL, so that every test of it
// also tests that.
const postgresPassword = "s3cret/p@ss word%:"

// shared is the server of the tests that leave it running.
var shared postgresServer

// postgresServer is a PostgreSQL server of the tests' own, on a free port.
type postgresServer struct {
	once sync.Once
	err  error
	bin  string
	dir  string
	port int
	as   *syscall.Credential // PostgreSQL refuses to run as root
	cmd  *exec.Cmd
	made atomic.Int64 // databases
}

// postgres is the shared server, started by the first test that needs it.
func postgres(tb testing.TB) *postgresServer {
	tb.Helper()
	bin := postgresBin(tb)
	shared.once.Do(func() { shared.bin = bin; shared.err = shared.create() })
	must(tb, shared.err)
	return &shared
}

// ownPostgres is a server that a test may stop and start.
func ownPostgres(t *testing.T) *postgresServer {
	t.Helper()
	s := &postgresServer{bin: postgresBin(t)}
	t.Cleanup(s.stop)
	must(t, s.create())
	return s
}

func postgresBin(tb testing.TB) string {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	must(tb, err)
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	const how = "no PostgreSQL here: apt-get install -y postgresql"
	if os.Getenv("CI") == "true" {
		tb.Fatal(how)
	}
	tb.Skip(how)
	return ""
}

// create makes a server's files and starts it.
func (s *postgresServer) create() (err error) {
	if s.dir, err = os.MkdirTemp("", "orch-audit-"); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
		gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte(postgresPassword), 0o644); err != nil {
		return err
	}
	made := s.command("initdb", "-D", s.data(), "-U", "orch", "--pwfile", password, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := made.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		return err
	}
	return s.start()
}

func (s *postgresServer) data() string { return filepath.Join(s.dir, "data") }

func (s *postgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start starts the server, on the same port each time, and waits until it answers.
func (s *postgresServer) start() error {
	s.cmd = s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1", "-k", "", "-c", "shared_buffers=64MB")
	if err := s.cmd.Start(); err != nil {
		return err
	}
	db, err := sql.Open("pgx", s.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return await(ctx, func() error { return db.PingContext(ctx) })
}

// halt ends the server as an outage does: it drops its clients.
func (s *postgresServer) halt() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *postgresServer) stop() {
	s.halt()
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

func (s *postgresServer) url(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("orch", postgresPassword),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: database,
	}).String()
}

// database makes an empty database and returns its URL.
func (s *postgresServer) database(tb testing.TB) string {
	tb.Helper()
	db, err := sql.Open("pgx", s.url("postgres"))
	must(tb, err)
	defer func() { _ = db.Close() }()
	name := fmt.Sprintf("t%d", s.made.Add(1))
	_, err = db.ExecContext(context.Background(), "CREATE DATABASE "+name)
	must(tb, err)
	return s.url(name)
}
