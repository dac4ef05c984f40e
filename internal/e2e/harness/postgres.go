package harness

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/testpg"
)

// SharedPostgres is where replicas that are processes keep their audit log.
type SharedPostgres struct {
	once   sync.Once
	server *testpg.Server
	err    error
}

// Postgres is started by the first test that asks for a database.
var Postgres SharedPostgres

// Database is an empty database of a test's own.
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
