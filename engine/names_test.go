package engine

import (
	"testing"

	"pgregory.net/rapid"
)

func TestJobID(t *testing.T) {
	if got := (&Row{EngineID: "abc"}).JobID(); got != "engine-abc" {
		t.Fatalf("got %q, want engine-abc", got)
	}
}

// TestVolumeNames: a name identifies the owner of a volume, and no name is chosen twice.
func TestVolumeNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &Row{EngineID: rapid.StringMatching(`[a-z2-7]{26}`).Draw(t, "engine_id")}
		seen := map[string]bool{}
		for n := 1; n < 30; n++ {
			name := e.Volume()
			if id, registration := VolumeOf(name); id != e.EngineID || seen[name] || n == 1 && registration != 1 {
				t.Fatalf("name %d is %q: of %q, registration %d", n, name, id, registration)
			}
			seen[name] = true
			for range rapid.IntRange(1, 3).Draw(t, "tries") {
				next := e.FreshVolumeName()
				if seen[next] {
					t.Fatalf("%q was chosen before", next)
				}
				seen[next], e.NextVolume = true, next
			}
			delete(seen, e.NextVolume)
			e.VolumeName = e.NextVolume
		}
	})
	for _, name := range []string{"", "engine-", "catalog", "engine-x.r1", "engine-x.r0", "engine-x.r02", "engine-x.r", "engine-x.r2.r3", "engine-x.ra", "engine-.r2"} {
		if id, n := VolumeOf(name); n != 0 || id != "" {
			t.Errorf("%q is volume %d of %q", name, n, id)
		}
	}
}
