package testpg

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// NeedPooler skips a test if PgBouncer is not installed; in CI the test fails.
func NeedPooler(tb testing.TB) {
	tb.Helper()
	if _, err := exec.LookPath(pgbouncer); err != nil {
		needed(tb, "PgBouncer is not installed: apt-get install -y pgbouncer")
	}
}

const pgbouncer = "/usr/sbin/pgbouncer"

// Pooler is a PgBouncer in front of a [Server].
type Pooler struct {
	cmd  *exec.Cmd
	port int
}

// Pool starts a PgBouncer whose clients share conns connections to s, each for one
// transaction. Call Stop even after an error.
func (s *Server) Pool(conns int) (*Pooler, error) {
	p := &Pooler{}
	var err error
	if p.port, err = freePort(); err != nil {
		return p, err
	}
	users, ini := filepath.Join(s.dir, "pooler-users"), filepath.Join(s.dir, "pooler.ini")
	if err := os.WriteFile(users, []byte(fmt.Sprintf("\"orch\" \"%s\"\n", password)), 0o644); err != nil {
		return p, err
	}
	config := fmt.Sprintf(`[databases]
* = host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
`, s.host, s.port, p.port, users, conns)
	if err := os.WriteFile(ini, []byte(config), 0o644); err != nil {
		return p, err
	}
	p.cmd = exec.Command(pgbouncer, "-q", ini)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL} // it refuses to run as root
	if err := p.cmd.Start(); err != nil {
		return p, err
	}
	return p, answers(p.URL("postgres"))
}

// Stop ends it at once.
func (p *Pooler) Stop() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// URL returns the URL of a database of the server through the pooler.
func (p *Pooler) URL(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("orch", password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)),
		Path: database, RawQuery: "sslmode=disable",
	}).String()
}
