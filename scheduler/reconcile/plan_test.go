package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

const (
	testIDPrefix     = "aaaaaa"
	testDeployment   = "orch"
	testDeploymentID = testIDPrefix + "22222222222222222222"
	testGrace        = 10 * time.Minute
)

func testID(idPrefix string, n int) string { return fmt.Sprintf("%s%020d", idPrefix, n) }

// simulated is a world that actions can change.
type simulated struct {
	now         time.Time
	index       uint64
	jobs        map[string]*cluster.JobInfo // by engine_id
	volumes     map[string][]*cluster.Volume
	variables   map[string]*cluster.VariableInfo
	keys        map[string]bool
	owners      map[string]secrets.Owner // of the keys with an owner
	keysLost    bool
	held        map[string]bool // quarantined
	silent      map[string]bool
	orphans     map[string]*registry.Orphan
	pooled      map[string]bool
	rows        map[string]*engine.Row // by engine_id
	unreachable map[string]*registry.UnreachableVolume
	quotas      map[string]registry.Quota
	suspects    map[string]suspect
}

// world returns the world as a pass sees it, without the lists that it cannot read.
func (s *simulated) world(missing ...string) *world {
	w := &world{
		now: s.now, deployment: testDeployment, deploymentID: testDeploymentID, grace: testGrace, silent: s.silent,
		pooled: maps.Clone(s.pooled), quotas: maps.Clone(s.quotas), suspects: s.suspects, missing: map[string]error{},
		quarantined: maps.Clone(s.held), owners: map[string]*secrets.EngineKey{}, keysLost: s.keysLost,
	}
	for id := range s.keys {
		w.owners[id] = &secrets.EngineKey{Owner: s.owners[id]}
	}
	for id := range s.held {
		w.quarantine = append(w.quarantine, &registry.Quarantined{EngineID: id})
	}
	for _, id := range slices.Sorted(maps.Keys(s.jobs)) {
		j := *s.jobs[id]
		w.jobs = append(w.jobs, &j)
	}
	for _, id := range slices.Sorted(maps.Keys(s.volumes)) {
		w.volumes = append(w.volumes, s.volumes[id]...)
	}
	for _, id := range slices.Sorted(maps.Keys(s.variables)) {
		w.variables = append(w.variables, s.variables[id])
	}
	w.keys = slices.Sorted(maps.Keys(s.keys))
	for _, id := range slices.Sorted(maps.Keys(s.rows)) {
		w.rows = append(w.rows, s.rows[id].Clone())
	}
	for _, g := range s.unreachable {
		w.unreachable = append(w.unreachable, g)
	}
	for _, o := range s.orphans {
		w.orphans = append(w.orphans, o)
	}
	for _, name := range missing {
		w.missing[name] = errors.New("not now")
		switch name {
		case listJobs:
			w.jobs = nil
		case listVolumes:
			w.volumes = nil
		case listVariables:
			w.variables = nil
		case listKeys:
			w.keys = nil
		case listOrphans:
			w.orphans = nil
		case listPool:
			w.pooled = nil
		case listRows:
			w.rows = nil
		case listUnreachableVolumes:
			w.unreachable = nil
		case listQuotas:
			w.quotas = nil
		}
	}
	return w
}

var allLists = []string{
	listJobs, listVolumes, listVariables, listKeys, listNodes, listOrphans, listPool, listRows, listUnreachableVolumes, listQuotas, listQuarantine, listOwners,
}

// drawWorld generates a world in which any combination is possible.
func drawWorld(t *rapid.T) *simulated {
	s := &simulated{
		now: time.Unix(1_700_000_000, 0).UTC(), index: 100, jobs: map[string]*cluster.JobInfo{}, volumes: map[string][]*cluster.Volume{},
		variables: map[string]*cluster.VariableInfo{}, keys: map[string]bool{}, silent: map[string]bool{"n1": rapid.Bool().Draw(t, "n1 is silent")},
		orphans: map[string]*registry.Orphan{}, pooled: map[string]bool{}, rows: map[string]*engine.Row{},
		unreachable: map[string]*registry.UnreachableVolume{}, quotas: map[string]registry.Quota{}, owners: map[string]secrets.Owner{}, held: map[string]bool{},
		keysLost: rapid.IntRange(0, 4).Draw(t, "Vault went back") == 0,
	}
	chance := func(name string, percent int) bool { return rapid.IntRange(0, 99).Draw(t, name) < percent }
	for i := range rapid.IntRange(1, 12).Draw(t, "engines") {
		id := testID(rapid.SampledFrom([]string{testIDPrefix, testIDPrefix, testIDPrefix, "bbbbbb"}).Draw(t, "idPrefix"), i)
		node := rapid.SampledFrom([]string{"n0", "n1"}).Draw(t, "node")
		product := rapid.SampledFrom([]string{"p0", "p1"}).Draw(t, "product")
		switch rapid.SampledFrom([]string{"row", "row", "pool", "unreachable_volume", "nothing", "nothing"}).Draw(t, "the registry has") {
		case "row":
			row := &engine.Row{
				EngineID: id, ProductID: product, UserID: fmt.Sprint("u", i), NodeID: node, VolumeID: "v-" + id,
				State: rapid.SampledFrom(engine.States).Draw(t, "state"),
			}
			if row.State == engine.Sleeping && chance("paused", 50) {
				row.Frozen = &engine.Frozen{}
			}
			if chance("an operation works on it", 30) {
				row.Op = &engine.Operation{Kind: engine.OpStart}
			}
			s.rows[id] = row
		case "pool":
			s.pooled[id] = true
		case "unreachable_volume":
			s.unreachable[id] = &registry.UnreachableVolume{EngineID: id, NodeID: node}
		}
		if chance("job", 60) {
			j := &cluster.JobInfo{ID: engine.JobID(id), ModifyIndex: uint64(i), Count: rapid.IntRange(-1, 1).Draw(t, "count"), Deployment: testDeployment, EngineID: id}
			if chance("a process", 50) {
				j.Live = []string{node}
			}
			if chance("another deployment's", 15) {
				j.Deployment = "other"
			}
			j.DeploymentID = rapid.SampledFrom([]string{"", testDeploymentID, testDeploymentID, "zzzzzz"}).Draw(t, "id of the job's deployment")
			if chance("of another engine", 10) {
				j.EngineID = "somebody"
			}
			s.jobs[id] = j
		}
		if chance("volume", 60) {
			s.volumes[id] = append(s.volumes[id], &cluster.Volume{ID: "v-" + id, Name: engine.JobID(id), NodeID: node})
			if chance("second volume", 15) {
				s.volumes[id] = append(s.volumes[id], &cluster.Volume{ID: "w-" + id, Name: engine.JobID(id), NodeID: "n0"})
			}
		}
		if chance("variable", 50) {
			s.variables[id] = &cluster.VariableInfo{JobID: engine.JobID(id), ModifyIndex: uint64(i)}
		}
		s.keys[id] = chance("key", 50)
		if !s.keys[id] {
			delete(s.keys, id)
		}
		if s.keys[id] && chance("the secret names the owner", 70) {
			s.owners[id] = secrets.Owner{
				Deployment: rapid.SampledFrom([]string{testDeploymentID, testDeploymentID, testDeploymentID, "zzzzzz"}).Draw(t, "deployment"),
				ProductID:  rapid.SampledFrom([]string{"p0", "p1", engine.WarmProduct}).Draw(t, "owner"), UserID: fmt.Sprint("u", i), EngineID: id,
			}
		}
		if chance("quarantined", 10) {
			s.held[id] = true
		}
		if chance("tombstone", 40) {
			age := time.Duration(rapid.IntRange(0, 1200).Draw(t, "age")) * time.Second
			s.orphans[id] = &registry.Orphan{EngineID: id, FirstSeen: s.now.Add(-age), Index: 1}
		}
	}
	for _, product := range []string{"p0", "p1"} {
		s.index++
		s.quotas[product] = registry.Quota{Count: rapid.IntRange(0, 5).Draw(t, "count of "+product), Index: s.index}
	}
	return s
}

// without reports whether this deployment created something that the registry does not
// have.
func (s *simulated) without(id string) bool {
	if s.rows[id] != nil || s.pooled[id] || s.unreachable[id] != nil || s.held[id] {
		return false
	}
	j, owner := s.jobs[id], s.owners[id]
	switch {
	case j != nil && (j.Deployment != testDeployment || j.DeploymentID != "" && j.DeploymentID != testDeploymentID):
		return false
	case owner.Deployment != "" && owner.Deployment != testDeploymentID:
		return false
	}
	return strings.HasPrefix(id, testIDPrefix) || s.keys[id] || j != nil && j.DeploymentID == testDeploymentID
}

// memory reports whether the objects of an id may hold a user's memory: everything that was
// ever handed out has a key, a job or a variable beside its volume, or runs.
func (s *simulated) memory(id string) bool {
	if s.owners[id].ProductID == engine.WarmProduct {
		return false // it was created but never handed out
	}
	return len(s.volumes[id]) > 0 && (s.keys[id] || s.jobs[id] != nil || s.variables[id] != nil) || s.jobs[id] != nil && len(s.jobs[id].Live) > 0
}

// checkSafe fails for an action that must never happen.
func (s *simulated) checkSafe(t *rapid.T, a *Action) {
	switch a.Act {
	case ActRemove, ActMark, ActKeep, ActRebuild, ActQuarantine:
		if !s.without(a.EngineID) {
			t.Fatalf("%+v: it belongs to somebody", a)
		}
	}
	switch a.Act {
	case ActRemove, ActMark, ActKeep:
		if s.memory(a.EngineID) {
			t.Fatalf("%+v: it may contain a user's memory", a)
		}
		if s.keysLost {
			t.Fatalf("%+v while Vault lacks keys", a)
		}
	case ActRebuild:
		if owner := s.owners[a.EngineID]; owner.Deployment != testDeploymentID || owner.ProductID == engine.WarmProduct {
			t.Fatalf("%+v: the owner in its secret is %+v", a, owner)
		}
	}
	switch a.Act {
	case ActRemove:
		o := s.orphans[a.EngineID]
		switch {
		case o == nil || s.now.Sub(o.FirstSeen) < testGrace:
			t.Fatalf("%+v: its tombstone is %+v at %s", a, o, s.now)
		case len(s.volumes[a.EngineID]) > 1:
			t.Fatalf("%+v: of two volumes one is removed", a)
		case s.jobs[a.EngineID] != nil && s.jobs[a.EngineID].EngineID != a.EngineID:
			t.Fatalf("%+v: the job is another engine's", a)
		}
		for _, v := range a.found.volumes {
			if s.silent[v.NodeID] {
				t.Fatalf("%+v: its node is silent", a)
			}
		}
	case ActScaleToZero, ActFail, ActDestroy, ActExamine:
		row := s.rows[a.EngineID]
		if row == nil || row.Op != nil {
			t.Fatalf("%+v: its row is %+v", a, row)
		}
		want := map[Act][]engine.State{
			ActScaleToZero: {engine.Stopped, engine.Sleeping}, ActFail: {engine.Provisioning},
			ActDestroy: {engine.Destroying}, ActExamine: {engine.Running},
		}[a.Act]
		if !slices.Contains(want, row.State) {
			t.Fatalf("%+v: the engine is %s", a, row.State)
		}
		j := s.jobs[a.EngineID]
		if j != nil && j.Deployment != testDeployment {
			t.Fatalf("%+v: the job is another deployment's", a)
		}
		if row.Frozen != nil && (s.silent[row.NodeID] || j != nil && j.Count != 0 && (j.Count < 0 || len(j.Live) > 0)) {
			t.Fatalf("%+v: the process that is frozen may be there", a)
		}
		if len(s.volumes[a.EngineID]) > 1 {
			t.Fatalf("%+v: there are two volumes of its name", a)
		}
	case ActCorrectQuota:
		rows := 0
		for _, row := range s.rows {
			if row.ProductID == a.ProductID {
				rows++
			}
		}
		if s.suspects[a.ProductID].quota != s.quotas[a.ProductID] || a.quota.rows != rows {
			t.Fatalf("%+v: the suspicion was %+v, the count is %+v, there are %d rows", a, s.suspects[a.ProductID], s.quotas[a.ProductID], rows)
		}
	}
}

// apply changes the simulated stores as the executor changes real ones.
func (s *simulated) apply(a *Action) (changed bool) {
	id := a.EngineID
	switch a.Act {
	case ActScaleToZero:
		if j := s.jobs[id]; j != nil {
			j.Count, j.Live = 0, nil
		}
		s.rows[id].Frozen = nil
	case ActFail, ActExamine: // the health check finds it down
		s.rows[id].State = engine.Failed
	case ActDestroy:
		delete(s.rows, id)
		s.clear(id)
	case ActCorrectQuota:
		s.index++
		s.quotas[a.ProductID] = registry.Quota{Count: a.quota.rows, Index: s.index}
	case ActMark:
		s.orphans[id] = &registry.Orphan{EngineID: id, FirstSeen: s.now, Index: 1}
	case ActUnmark:
		delete(s.orphans, id)
	case ActRemove:
		s.clear(id)
		delete(s.orphans, id)
	case ActRebuild:
		owner := s.owners[id]
		s.rows[id] = &engine.Row{EngineID: id, ProductID: owner.ProductID, UserID: owner.UserID, State: engine.Failed, Desired: engine.Running, Reason: engine.ReasonRecovered}
		if q, counted := s.quotas[owner.ProductID]; counted {
			s.index++
			s.quotas[owner.ProductID] = registry.Quota{Count: q.Count + 1, Index: s.index}
		}
	case ActQuarantine:
		s.held[id] = true
	case ActRelease:
		delete(s.held, id)
	case ActDropPooled:
		delete(s.pooled, id)
	default:
		return false
	}
	return true
}

func (s *simulated) clear(id string) {
	delete(s.jobs, id)
	delete(s.volumes, id)
	delete(s.variables, id)
	delete(s.keys, id)
	delete(s.owners, id)
}

// foreign returns all objects with an owner: those of the registry, and those that others
// created.
func (s *simulated) foreign() map[string]string {
	out := map[string]string{}
	for i, store := range []any{s.jobs, s.volumes, s.variables, s.keys} {
		add := func(id string, v any) {
			if !s.without(id) {
				out[fmt.Sprint(i, id)] = fmt.Sprint(v)
			}
		}
		switch store := store.(type) {
		case map[string]*cluster.JobInfo:
			for id, j := range store {
				add(id, j.EngineID+" of "+j.Deployment)
			}
		case map[string][]*cluster.Volume:
			for id, v := range store {
				add(id, len(v))
			}
		case map[string]*cluster.VariableInfo:
			for id := range store {
				add(id, nil)
			}
		case map[string]bool:
			for id := range store {
				add(id, nil)
			}
		}
	}
	return out
}

// In any world, with any list missing, no action touches what belongs to a row, a pool
// entry, an unreachable volume or another deployment, and nothing is removed, marked or
// unmarked while a list is incomplete.
func TestPlanIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawWorld(t)
		s.suspects = map[string]suspect{"p0": {s.quotas["p0"], rapid.IntRange(0, 5).Draw(t, "rows of the pass before")}}
		var missing []string
		if rapid.Bool().Draw(t, "incomplete") {
			missing = rapid.SliceOfNDistinct(rapid.SampledFrom(allLists), 1, 3, rapid.ID[string]).Draw(t, "missing")
		}
		actions := plan(s.world(missing...))
		for _, a := range actions {
			if len(missing) == 0 {
				s.checkSafe(t, a)
				continue
			}
			switch a.Act {
			case ActMark, ActUnmark, ActRemove, ActKeep, ActRebuild, ActQuarantine, ActRelease:
				t.Fatalf("%+v without %v", a, missing)
			}
			if slices.Contains(missing, listRows) {
				t.Fatalf("%+v without the rows", a)
			}
			if a.Act == ActScaleToZero || a.Act == ActExamine {
				if slices.Contains(missing, listJobs) {
					t.Fatalf("%+v without the jobs", a)
				}
				s.checkSafeButVolumes(t, a)
			}
		}
		if again := plan(s.world(missing...)); !slices.EqualFunc(actions, again, func(a, b *Action) bool { return a.key() == b.key() && a.Why == b.Why }) {
			t.Fatal("the same world has two plans")
		}
	})
}

// checkSafeButVolumes: while the volumes are unread, two with one name cannot be detected.
func (s *simulated) checkSafeButVolumes(t *rapid.T, a *Action) {
	volumes := s.volumes
	s.volumes = nil
	defer func() { s.volumes = volumes }()
	s.checkSafe(t, a)
}

// Repeated passes over any world reach a fixed point. Then everything without a row is
// ambiguous and reported, no engine runs that should not, the counts are right, and all
// objects with an owner are unchanged.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawWorld(t)
		kept, destroying := s.foreign(), map[string]bool{}
		brains := map[string]int{}
		for id := range s.volumes {
			if s.memory(id) && (s.rows[id] == nil || s.rows[id].State != engine.Destroying) {
				brains[id] = len(s.volumes[id])
			}
		}
		for id, row := range s.rows {
			destroying[id] = row.State == engine.Destroying
		}
		const passes = 40
		for pass := 0; ; pass++ {
			if pass == passes {
				t.Fatalf("no rest after %d passes", passes)
			}
			if pass == 5 {
				s.silent, s.keysLost = map[string]bool{}, false // the node is back, and every key
			}
			changed, waiting := false, false
			suspects := map[string]suspect{}
			for _, a := range plan(s.world()) {
				s.checkSafe(t, a)
				changed = s.apply(a) || changed
				if a.Act == ActDropPooled {
					destroying[a.EngineID] = true // it no longer belongs to the entry
				}
				waiting = waiting || a.Act == ActKeep || a.Act == ActWatchQuota
				if a.Act == ActWatchQuota {
					suspects[a.ProductID] = a.quota
				}
			}
			s.suspects = suspects
			s.now = s.now.Add(time.Minute)
			if !changed && !waiting && pass > 5 {
				break
			}
		}
		reported := map[string]bool{}
		for _, a := range plan(s.world()) {
			if a.Act != ActReport {
				t.Fatalf("at rest, and yet %+v", a)
			}
			reported[a.EngineID] = true
		}
		for id := range s.orphans {
			if !reported[id] {
				t.Errorf("a tombstone of %s remains", id)
			}
		}
		for i, ids := range [][]string{keysOf(s.jobs), keysOf(s.volumes), keysOf(s.variables), keysOf(s.keys)} {
			for _, id := range ids {
				if s.without(id) && !reported[id] {
					t.Errorf("%s remains in store %d without a row", id, i)
				}
			}
		}
		for id, n := range brains {
			if len(s.volumes[id]) != n {
				t.Errorf("of %d volumes that may hold somebody's memory under %s, %d are left", n, id, len(s.volumes[id]))
			}
		}
		counts := map[string]int{}
		for id, row := range s.rows {
			counts[row.ProductID]++
			if j := s.jobs[id]; j != nil && row.Op == nil && row.Frozen == nil && !reported[id] && (row.State == engine.Stopped || row.State == engine.Sleeping) && (j.Count > 0 || len(j.Live) > 0) {
				t.Errorf("%s is %s and runs: %+v", id, row.State, j)
			}
		}
		for product, q := range s.quotas {
			if q.Count != counts[product] {
				t.Errorf("%s counts %d, there are %d", product, q.Count, counts[product])
			}
		}
		for what, was := range kept {
			if destroying[what[1:]] {
				continue // it was finished
			}
			if now, there := s.foreign()[what]; !there || now != was {
				t.Errorf("%s was %s and is %q", what, was, now)
			}
		}
	})
}

func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// Engines that lost their rows are never removed, whatever their number or share: an engine
// with a user is rebuilt, and an admin decides about one without a known owner.
func TestPlanRemovesNoMemory(t *testing.T) {
	for _, n := range []int{1, 9, 10, 50} {
		for _, rows := range []int{0, 40, 1000} {
			s := &simulated{
				now: time.Now(), jobs: map[string]*cluster.JobInfo{}, volumes: map[string][]*cluster.Volume{}, keys: map[string]bool{}, owners: map[string]secrets.Owner{},
				orphans: map[string]*registry.Orphan{}, rows: map[string]*engine.Row{}, silent: map[string]bool{}, quotas: map[string]registry.Quota{"p": {Count: rows}},
			}
			volume := func(id string) {
				s.volumes[id] = []*cluster.Volume{{ID: "v", Name: engine.JobID(id), NodeID: "n0"}}
				s.orphans[id] = &registry.Orphan{EngineID: id, FirstSeen: s.now.Add(-time.Hour)}
			}
			for i := range rows {
				id := testID("cccccc", i)
				s.rows[id] = &engine.Row{EngineID: id, State: engine.Failed, ProductID: "p"}
			}
			for i := range n {
				known, unknown, warm := testID(testIDPrefix, 4*i), testID(testIDPrefix, 4*i+1), testID(testIDPrefix, 4*i+2)
				for _, id := range []string{known, unknown, warm} {
					volume(id)
					s.keys[id] = true
				}
				s.owners[known] = secrets.Owner{Deployment: testDeploymentID, ProductID: "p", UserID: "u", EngineID: known}
				s.owners[warm] = secrets.Owner{Deployment: testDeploymentID, ProductID: engine.WarmProduct, UserID: "w", EngineID: warm}
				volume(testID(testIDPrefix, 4*i+3)) // of the pool
			}
			got := map[Act]int{}
			for _, a := range plan(s.world()) {
				got[a.Act]++
			}
			// The tombstones of the first two are removed.
			if diff := cmp.Diff(map[Act]int{ActRebuild: n, ActQuarantine: n, ActRemove: 2 * n, ActUnmark: 2 * n}, got); diff != "" {
				t.Errorf("%d of each beside %d rows (-want +got):\n%s", n, rows, diff)
			}
		}
	}
}

// TestWithoutVolume: a pool entry is suspected only when both lists are complete.
func TestWithoutVolume(t *testing.T) {
	w := &world{
		pooled:  map[string]bool{"a": true, "b": true},
		volumes: []*cluster.Volume{{Name: engine.JobID("a")}, {Name: engine.JobID("c")}},
		missing: map[string]error{},
	}
	if lost := w.withoutVolume(); !maps.Equal(lost, map[string]bool{"b": true}) || len(w.pooled) != 2 {
		t.Errorf("suspected: %v; pooled: %v", lost, w.pooled)
	}
	for _, list := range []string{listVolumes, listPool} {
		w.missing = map[string]error{list: cluster.ErrUnavailable}
		if lost := w.withoutVolume(); len(lost) > 0 {
			t.Errorf("without the list of %s: %v", list, lost)
		}
	}
}
