package e2e

import (
	"path/filepath"
	"testing"
	"time"
)

// neverRecovered fails the test if the registry was ever taken for one that went
// back in time. Nothing went back: a service was killed, no store restored.
func (p *faulty) neverRecovered(t *testing.T) {
	t.Helper()
	status, err := p.Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.State != "ok" || status.LastRecovery != nil || status.Keys != "ok" {
		t.Errorf("the registry is %+v, and was recovered: %+v", status, status.LastRecovery)
	}
}

// testEpochPoints kills leaders between the writes that raise the epoch, several in a
// row. The next one goes on, and takes neither store for an older one.
func testEpochPoints(t *testing.T, points []string) {
	t.Parallel()
	const prefix = "faults-epoch/"
	database, s := "sqlite://"+filepath.Join(t.TempDir(), "audit.db"), openStores(t, shared)
	startFaulty(t, prefix, database, "").end()
	s.endSessions(prefix)
	for _, point := range append(points, points[1], points[0], points[0]) {
		if err := startFaulty(t, prefix, database, "kill "+point).awaitDeath(40 * time.Second); err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		s.endSessions(prefix)
	}
	p := startFaulty(t, prefix, database, "")
	eventually(t, "the registry says so", func() error {
		_, err := p.Registry(t.Context())
		return err
	})
	p.neverRecovered(t)
}
