package faults

import (
	"path/filepath"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// testEpochPoints kills several leaders in succession between the writes that increment the
// epoch. The next leader continues, and treats neither store as an outdated one.
func testEpochPoints(t *testing.T, points []string) {
	t.Parallel()
	const prefix = "faults-epoch/"
	database, s := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), harness.OpenStores(t, harness.Shared)
	harness.StartFaulty(t, prefix, database, "").End()
	s.EndSessions(prefix)
	for _, point := range append(points, points[1], points[0], points[0]) {
		if err := harness.StartFaulty(t, prefix, database, "kill "+point).AwaitDeath(); err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		s.EndSessions(prefix)
	}
	p := harness.StartFaulty(t, prefix, database, "")
	harness.Eventually(t, "the registry says so", func() error {
		_, err := p.Registry(t.Context())
		return err
	})
	p.NeverRecovered(t)
}
