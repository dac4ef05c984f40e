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
		seen, registered, last := map[string]bool{}, false, 0
		for n := 1; n < 30; n++ {
			name := e.Volume()
			if v, ok := ParseVolume(name); !ok || v.EngineID != e.EngineID || seen[name] || v.Registered != registered || v.Number <= last {
				t.Fatalf("name %d is %q: %+v", n, name, v)
			} else if v.Number > 1 {
				last = v.Number
			}
			seen[name] = true
			for range rapid.IntRange(1, 3).Draw(t, "tries") {
				if drill := e.FreshDrillName(); rapid.Bool().Draw(t, "drill") {
					if v, ok := ParseVolume(drill); !ok || v.EngineID != e.EngineID || !v.Drill || v.Registered || seen[drill] {
						t.Fatalf("the volume of a drill is %q: %+v", drill, v)
					}
					seen[drill], e.NextVolume = true, drill
				}
				next := e.FreshRestoreName()
				if registered = rapid.Bool().Draw(t, "registered"); registered {
					next = e.FreshVolumeName()
				}
				if seen[next] {
					t.Fatalf("%q was chosen before", next)
				}
				seen[next], e.NextVolume = true, next
			}
			delete(seen, e.NextVolume)
			e.VolumeName = e.NextVolume
		}
	})
	for _, name := range []string{"", "engine-", "catalog", "engine-x.r1", "engine-x.r0", "engine-x.r02", "engine-x.r", "engine-x.r2.r3", "engine-x.ra", "engine-.r2", "engine-x.v1", "engine-.v2", "engine-x.v2.r3", "engine-x.d1", "engine-.d2", "engine-x.d2.d3"} {
		if v, ok := ParseVolume(name); ok {
			t.Errorf("%q is a volume: %+v", name, v)
		}
	}
}
