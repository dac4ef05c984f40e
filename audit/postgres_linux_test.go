package audit

import (
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/testpg"
)

// shared is the server of tests that do not stop it.
var shared struct {
	once   sync.Once
	server *testpg.Server
	err    error
}

// postgres returns the shared server, which the first test that needs it starts.
func postgres(tb testing.TB) *testpg.Server {
	tb.Helper()
	testpg.Need(tb)
	shared.once.Do(func() { shared.server, shared.err = testpg.New() })
	must(tb, shared.err)
	return shared.server
}

// ownPostgres starts a server that a test may stop and start.
func ownPostgres(t *testing.T) *testpg.Server {
	t.Helper()
	testpg.Need(t)
	s, err := testpg.New()
	t.Cleanup(s.Stop)
	must(t, err)
	return s
}

// emptyDatabase creates an empty database.
func emptyDatabase(tb testing.TB, s *testpg.Server) string {
	tb.Helper()
	url, err := s.Database()
	must(tb, err)
	return url
}
