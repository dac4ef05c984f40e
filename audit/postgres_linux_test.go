package audit

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/testpg"
)

// shared is the server of the tests that leave it running.
var shared struct {
	once   sync.Once
	server *testpg.Server
	err    error
}

// postgres is the shared server, started by the first test that needs it.
func postgres(tb testing.TB) *testpg.Server {
	tb.Helper()
	testpg.Need(tb)
	shared.once.Do(func() { shared.server, shared.err = testpg.New() })
	must(tb, shared.err)
	return shared.server
}

// ownPostgres is a server that a test may stop and start.
func ownPostgres(t *testing.T) *testpg.Server {
	t.Helper()
	testpg.Need(t)
	s, err := testpg.New()
	t.Cleanup(s.Stop)
	must(t, err)
	return s
}

// emptyDatabase makes an empty database.
func emptyDatabase(tb testing.TB, s *testpg.Server) string {
	tb.Helper()
	url, err := s.Database()
	must(tb, err)
	return url
}
