package harness

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/testpg"
)

// SharedPostgres is a PostgreSQL server for the audit logs of replicas that are processes.
type SharedPostgres struct {
	once   sync.Once
	server *testpg.Server
	err    error
}

// Postgres is started by the first test that needs a database.
var Postgres SharedPostgres

// Database creates an empty database for a test.
func (p *SharedPostgres) Database(t *testing.T) string {
	t.Helper()
	testpg.Need(t)
	p.once.Do(func() { p.server, p.err = testpg.New() })
	if p.err != nil {
		t.Fatal(p.err)
	}
	url, err := p.server.Database()
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func (p *SharedPostgres) stop() {
	if p.server != nil {
		p.server.Stop()
	}
}
