package reconcile

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// damagedRow is an unreadable record of a user's row.
func damagedRow(productID string, newer bool) *registry.Unreadable {
	return &registry.Unreadable{Key: "t/engines/x", ProductID: productID, UserID: "user", Index: 7, Newer: newer, Err: errors.New("damaged")}
}

// Whatever evidence of an engine's owner is left, nothing of the engine is removed or
// marked because its row cannot be read; leftovers that certainly belong to others are
// removed.
func TestDamagedRowKeepsItsEngine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		flag := func(name string) bool { return rapid.Bool().Draw(t, name) }
		id, other, now := testID(testIDPrefix, 1), testID(testIDPrefix, 2), time.Now()
		s := &simulated{now: now, keys: map[string]bool{other: true}, owners: map[string]secrets.Owner{}, volumes: map[string][]*cluster.Volume{}}
		s.owners[other] = secrets.Owner{Deployment: testDeploymentID, ProductID: engine.WarmProduct, UserID: "w", EngineID: other}
		secret, indexed, newer := flag("secret"), flag("indexed"), flag("newer")
		if secret {
			s.keys[id] = true
			s.owners[id] = secrets.Owner{Deployment: testDeploymentID, ProductID: "p", UserID: "user", EngineID: id}
		}
		if flag("volume") {
			s.volumes[id] = []*cluster.Volume{{ID: "v", Name: engine.JobID(id), NodeID: "n"}}
		}
		if flag("job") {
			s.jobs = map[string]*cluster.JobInfo{id: {ID: engine.JobID(id), EngineID: id, Deployment: testDeployment, DeploymentID: testDeploymentID, Count: 1}}
		}
		if flag("variable") {
			s.variables = map[string]*cluster.VariableInfo{id: {JobID: engine.JobID(id)}}
		}
		s.orphans = map[string]*registry.Orphan{other: {EngineID: other, FirstSeen: now.Add(-2 * testGrace)}}
		if flag("marked") {
			s.orphans[id] = &registry.Orphan{EngineID: id, FirstSeen: now.Add(-2 * testGrace)}
		}
		w := s.world()
		w.unreadable = []*registry.Unreadable{damagedRow("p", newer)}
		if indexed {
			w.indexed = map[string][]string{"t/engines/x": {id}}
		}
		something := secret || len(s.volumes)+len(s.jobs)+len(s.variables) > 0
		told, removed := 0, false
		for _, a := range plan(w) {
			switch {
			case a.EngineID == other && a.Act == ActRemove:
				removed = true
			case a.damaged != nil:
				told++
				if newer && a.Act != ActReport || a.Act == ActForget && something {
					t.Fatalf("%s: %s", a.Act, a.Why)
				}
				if !newer && (secret || indexed) && something && a.Act != ActRebuild {
					t.Fatalf("%s: %s", a.Act, a.Why)
				}
			case a.EngineID == id && (a.Act == ActMark || a.Act == ActRemove):
				t.Fatalf("%s: %s", a.Act, a.Why)
			}
		}
		if told != 1 || !removed {
			t.Fatalf("reported %d times; the other's leftover is removed: %v", told, removed)
		}
	})
}

// A row of a warm engine is removed, because no user had it.
func TestDamagedRowOfAWarmEngine(t *testing.T) {
	id := testID(testIDPrefix, 1)
	s := &simulated{now: time.Now(), keys: map[string]bool{id: true}, owners: map[string]secrets.Owner{
		id: {Deployment: testDeploymentID, ProductID: engine.WarmProduct, UserID: "user", EngineID: id},
	}}
	w := s.world()
	w.unreadable = []*registry.Unreadable{damagedRow(engine.WarmProduct, false)}
	if got := plan(w); len(got) != 1 || got[0].Act != ActForget {
		t.Errorf("planned: %+v", got)
	}
}

// While a list is missing, or Vault is known to have lost keys, a damaged row is not
// touched; it still counts in the quota.
func TestDamagedRowWaits(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"OKListMissing": func(w *world) { w.missing[listVolumes] = errors.New("not now") },
		"OKKeysLost":    func(w *world) { w.keysLost = true },
	} {
		t.Run(name, func(t *testing.T) {
			s := &simulated{now: time.Now(), quotas: map[string]registry.Quota{"p": {Count: 1, Index: 1}}}
			w := s.world()
			w.unreadable = []*registry.Unreadable{damagedRow("p", false)}
			spoil(w)
			if got := plan(w); len(got) != 1 || got[0].Act != ActReport || got[0].Subject != "engine" {
				t.Errorf("planned: %+v", got)
			}
		})
	}
}

// Two rows of one engine are both reported, and not touched.
func TestPlanOfTwins(t *testing.T) {
	for name, quarantined := range map[string]bool{"OKNew": false, "OKQuarantined": true} {
		t.Run(name, func(t *testing.T) {
			id := testID(testIDPrefix, 1)
			s := &simulated{now: time.Now(), keys: map[string]bool{id: true}, held: map[string]bool{}}
			if quarantined {
				s.held[id] = true
			}
			w := s.world()
			for i := range 2 {
				w.rows = append(w.rows, &engine.Row{EngineID: id, ProductID: "p", UserID: fmt.Sprint(i), State: engine.Destroying})
			}
			w.missing[listQuotas] = errors.New("of no interest")
			acts := map[Act]int{}
			for _, a := range plan(w) {
				acts[a.Act]++
			}
			want := map[Act]int{ActReport: 1, ActQuarantine: 1}
			if quarantined {
				want = map[Act]int{ActReport: 2}
			}
			if fmt.Sprint(acts) != fmt.Sprint(want) {
				t.Errorf("planned %v, want %v", acts, want)
			}
		})
	}
}
