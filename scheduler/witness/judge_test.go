package witness

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// history is the life of a few engines: the content of each store after each step.
type history struct {
	rows    []map[string]*engine.Row // by engine_id, after each step
	pool    []map[string]bool        // engine_ids of empty volumes
	outside []map[string]*Evidence   // content of Vault and Nomad, by engine_id
	told    map[string]secrets.Owner // the owner who was given an engine's key
}

const simDeployment = "dddddd22222222222222222222"

// drawHistory generates a history: provisions from a pool, warm claims, rotations, stops,
// starts and destroys.
func drawHistory(t *rapid.T) *history {
	h := &history{told: map[string]secrets.Owner{}}
	rows, pool, outside := map[string]*engine.Row{}, map[string]bool{}, map[string]*Evidence{}
	next := 0
	newID := func() string { next++; return fmt.Sprintf("dddddd%020d", next) }
	save := func() {
		r, p, o := map[string]*engine.Row{}, map[string]bool{}, map[string]*Evidence{}
		for id, row := range rows {
			r[id] = row.Clone()
		}
		for id := range pool {
			p[id] = true
		}
		for id, w := range outside {
			c := *w
			c.keys = append([]*secrets.EngineKey(nil), w.keys...)
			if w.job != nil {
				job := *w.job
				c.job = &job
			}
			o[id] = &c
		}
		h.rows, h.pool, h.outside = append(h.rows, r), append(h.pool, p), append(h.outside, o)
	}
	owner := func(row *engine.Row) secrets.Owner {
		return secrets.Owner{Deployment: simDeployment, ProductID: row.ProductID, UserID: row.UserID, EngineID: row.EngineID}
	}
	key := func(row *engine.Row, version int) *secrets.EngineKey {
		return &secrets.EngineKey{Key: fmt.Sprint("key-", row.EngineID, "-", version), ID: fmt.Sprint("id-", row.EngineID, "-", version), Owner: owner(row), Version: version}
	}
	run := func(row *engine.Row) {
		w := outside[row.EngineID]
		w.job = &jobs.Engine{EngineID: row.EngineID, ProductID: row.ProductID, UserID: row.UserID, Image: "i", Count: 1}
		w.live, w.rest = 1, ""
		row.State, row.Desired = engine.Running, engine.Running
	}
	make := func(id, product, user string) *engine.Row {
		row := &engine.Row{EngineID: id, ProductID: product, UserID: user, NodeID: "n", VolumeID: "v-" + id, VolumePath: "/v", Image: "i", KeyVersion: 1}
		k := key(row, 1)
		row.KeyID = k.ID
		w := outside[id]
		w.keys = []*secrets.EngineKey{k}
		w.variable = &cluster.Variable{KeyHash: secrets.Hash(k.Key), Witness: &cluster.Witness{EngineID: id, ProductID: product, UserID: user, Image: "i"}}
		run(row)
		rows[id] = row
		return row
	}
	volume := func() string {
		id := newID()
		outside[id] = &Evidence{id: id, deployment: simDeployment, volumes: []*cluster.Volume{{ID: "v-" + id, Name: engine.JobID(id), NodeID: "n", Path: "/v"}}}
		return id
	}
	some := func(want func(*engine.Row) bool) *engine.Row {
		var list []*engine.Row
		for i := 1; i <= next; i++ {
			if row := rows[fmt.Sprintf("dddddd%020d", i)]; row != nil && want(row) {
				list = append(list, row)
			}
		}
		if len(list) == 0 {
			return nil
		}
		return rapid.SampledFrom(list).Draw(t, "engine")
	}
	users := func(row *engine.Row) bool { return row.ProductID != engine.WarmProduct }
	save()
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		user := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "user")
		has := some(func(row *engine.Row) bool { return users(row) && row.UserID == user })
		switch rapid.SampledFrom([]string{"fill", "provision", "provision", "warm", "claim", "claim", "rotate", "stop", "sleep", "start", "destroy", "destroying"}).Draw(t, "step") {
		case "fill":
			pool[volume()] = true
		case "provision":
			if has != nil {
				break
			}
			id := ""
			for pooled := range pool {
				if id == "" || pooled < id {
					id = pooled
				}
			}
			if id == "" {
				id = volume()
			}
			delete(pool, id)
			empty := outside[id]
			if rapid.Bool().Draw(t, "its volume is created later") {
				delete(outside, id)
			}
			rows[id] = &engine.Row{EngineID: id, ProductID: "p", UserID: user, NodeID: "n", Image: "i", State: engine.Provisioning, Desired: engine.Running, Op: &engine.Operation{Kind: engine.OpProvision}}
			save()
			outside[id] = empty
			h.told[id] = owner(make(id, "p", user))
		case "warm":
			id := volume()
			make(id, engine.WarmProduct, "w"+id)
		case "claim":
			warm := some(func(row *engine.Row) bool { return !users(row) })
			if warm == nil || has != nil {
				break
			}
			row := warm.Clone()
			row.ProductID, row.UserID, row.KeyVersion = "p", user, 2
			k := *outside[row.EngineID].keys[0]
			k.Owner, k.Version = owner(row), 2
			outside[row.EngineID].keys = []*secrets.EngineKey{&k, outside[row.EngineID].keys[0]}
			rows[row.EngineID] = row
			h.told[row.EngineID] = owner(row)
		case "rotate":
			if has == nil || has.State != engine.Running {
				break
			}
			k := key(has, has.KeyVersion+1)
			w := outside[has.EngineID]
			w.keys = []*secrets.EngineKey{k} // the previous ones are destroyed
			w.variable = &cluster.Variable{KeyHash: secrets.Hash(k.Key), Witness: w.variable.Witness}
			has.KeyVersion, has.KeyID = k.Version, k.ID
		case "stop", "sleep":
			if has == nil || has.State != engine.Running {
				break
			}
			has.State, has.Desired = engine.Stopped, engine.Stopped
			if rapid.Bool().Draw(t, "sleeps") {
				has.State, has.Desired = engine.Sleeping, engine.Running
			}
			outside[has.EngineID].job.Count, outside[has.EngineID].rest, outside[has.EngineID].live = 0, string(has.State), 0
		case "start":
			if has != nil && has.State != engine.Running {
				run(has)
			}
		case "destroying": // its key is removed before its row
			if has != nil {
				has.State, has.Desired = engine.Destroying, engine.Destroying
				has.Op = &engine.Operation{Kind: engine.OpDestroy}
				save()
				delete(outside, has.EngineID)
				save()
				delete(rows, has.EngineID)
			}
		case "destroy":
			if has != nil {
				delete(rows, has.EngineID)
				delete(outside, has.EngineID)
			}
		}
		save()
	}
	return h
}

// A registry is restored to any earlier moment, or emptied, and then judged row by row and
// engine by engine: every engine with a user belongs to that user again, with its current
// key and state; no other user gets it; nothing of it is removed; missing engines are
// reported as missing; and no pooled volume that was handed out stays in the pool.
func TestAnyHistoryIsRebuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		last := len(h.rows) - 1
		back := rapid.IntRange(-1, last).Draw(t, "moment") // -1: it is emptied
		rows, pool := map[string]*engine.Row{}, map[string]bool{}
		if back >= 0 {
			rows, pool = h.rows[back], h.pool[back]
		}
		now, want := h.outside[last], h.rows[last]
		at := time.Unix(1_700_000_000, 0).UTC()
		rebuilt := map[string]*engine.Row{}
		for id, row := range rows {
			w := now[id]
			if w == nil {
				w = &Evidence{id: id, deployment: simDeployment}
			}
			w.row = row
			r := w.JudgeRow(at, true)
			if r.Verdict == Quarantine {
				t.Fatalf("%s is quarantined: %s", id, r.Why)
			}
			rebuilt[id] = row
			if r.Row != nil {
				rebuilt[id] = r.Row
			}
			w.row = nil
		}
		for id := range pool {
			w := now[id]
			if w == nil || len(w.keys) > 0 || w.job != nil || w.variable != nil {
				delete(pool, id) // like recovery.pool
			}
		}
		for id, w := range now {
			if rebuilt[id] != nil || pool[id] {
				continue
			}
			r := w.JudgeLost(at, true)
			if r.Verdict != "" && r.Verdict != Rebuild {
				t.Fatalf("%s: %s %s", id, r.Verdict, r.Why)
			}
			if r.Verdict == "" {
				continue
			}
			// The restored row of the user gives way, because nothing of its engine is
			// left.
			for other, row := range rebuilt {
				if row.ProductID != r.Row.ProductID || row.UserID != r.Row.UserID {
					continue
				}
				if now[other] != nil && !now[other].Nothing() {
					t.Fatalf("%s and %s are both of %s", id, other, row.UserID)
				}
				delete(rebuilt, other)
			}
			rebuilt[id] = r.Row
		}
		for id, row := range want {
			got := rebuilt[id]
			if row.ProductID == engine.WarmProduct {
				continue // it is restored, or belongs to no user
			}
			if got == nil || got.ProductID != row.ProductID || got.UserID != row.UserID || got.KeyVersion != row.KeyVersion || got.KeyID != row.KeyID || got.VolumeID != row.VolumeID {
				t.Fatalf("engine %s was %+v and is %+v", id, row, got)
			}
			runs := got.State == engine.Running || got.State == engine.Failed && got.Reason == engine.ReasonRecovered && got.Desired == engine.Running
			if row.State == engine.Running && !runs || row.State != engine.Running && (got.State != row.State || got.Desired != row.Desired) {
				t.Fatalf("engine %s was %s and is %s (%s, desired %s)", id, row.State, got.State, got.Reason, got.Desired)
			}
		}
		for id, row := range rebuilt {
			if row.Reason == engine.ReasonBrainMissing || row.State == engine.Destroying {
				continue // there is nothing to hand out
			}
			owner := secrets.Owner{Deployment: simDeployment, ProductID: row.ProductID, UserID: row.UserID, EngineID: id}
			if told, was := h.told[id]; was && told != owner {
				t.Fatalf("engine %s is given to %+v, but %+v was given its key", id, owner, told)
			}
			if want[id] == nil {
				t.Fatalf("engine %s was destroyed and is %+v", id, row)
			}
		}
		for id := range pool {
			if told, was := h.told[id]; was {
				t.Fatalf("volume %s is pooled again, but %+v was given its key", id, told)
			}
		}
		// Judged again, there is nothing to do.
		for id, row := range rebuilt {
			w := now[id]
			if w == nil {
				w = &Evidence{id: id, deployment: simDeployment}
			}
			w.row = row
			if r := w.JudgeRow(at, true); r.Verdict != "" {
				t.Fatalf("%s is judged once more: %s %s", id, r.Verdict, r.Why)
			}
		}
	})
}

// Vault is restored to any earlier moment, or emptied, and the registry is compared with
// it: no engine changes its user, no row gets a key that its engine does not accept, and
// nothing is given up.
func TestAnyVaultIsSurvived(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		last := len(h.rows) - 1
		back := rapid.IntRange(-1, last).Draw(t, "moment")
		rows, now := h.rows[last], h.outside[last]
		at := time.Unix(1_700_000_000, 0).UTC()
		for id, w := range now {
			w.keys = nil
			if back >= 0 && h.outside[back][id] != nil {
				w.keys = h.outside[back][id].keys
			}
		}
		takes := func(w *Evidence, row *engine.Row) bool {
			for _, k := range w.keys {
				if k.Version == row.KeyVersion && k.ID == row.KeyID {
					return w.variable != nil && secrets.Hash(k.Key) == w.variable.KeyHash
				}
			}
			return true // Vault does not have it: no user gets it
		}
		for id, row := range rows {
			w := now[id]
			if w == nil {
				continue // it is being destroyed
			}
			w.row = row
			r := w.JudgeRow(at, true)
			switch {
			case r.Verdict == Quarantine && row.ProductID != engine.WarmProduct && len(w.keys) > 0 && w.keys[0].Owner.ProductID == engine.WarmProduct:
				continue // it was warm at that time: no user gets its key until an admin decides
			case r.Verdict != "" && r.Verdict != Correct:
				t.Fatalf("engine %s: %s %s", id, r.Verdict, r.Why)
			case r.Row == nil:
				continue
			}
			if r.Row.ProductID != row.ProductID || r.Row.UserID != row.UserID || r.Row.VolumeID != row.VolumeID || !takes(w, r.Row) {
				t.Fatalf("engine %s was %+v and is %+v; Vault has %+v", id, row, r.Row, w.keys)
			}
		}
	})
}

// Nomad's servers are restored to any earlier moment, or emptied, and the registry to
// another one: no engine changes its user, and each engine with a user belongs to that user
// or is left to an admin. Its key, the last evidence of its owner, is kept.
func TestAnyNomadIsSurvived(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		last := len(h.rows) - 1
		servers, back := rapid.IntRange(-1, last).Draw(t, "moment of Nomad"), rapid.IntRange(-1, last).Draw(t, "moment of the registry")
		rows, at := map[string]*engine.Row{}, time.Unix(1_700_000_000, 0).UTC()
		if back >= 0 {
			rows = h.rows[back]
		}
		now := map[string]*Evidence{}
		find := func(id string) *Evidence {
			if now[id] == nil {
				now[id] = &Evidence{id: id, deployment: simDeployment}
			}
			return now[id]
		}
		if servers >= 0 {
			for id, w := range h.outside[servers] {
				c := *w
				c.keys = nil
				now[id] = &c
			}
		}
		for id, w := range h.outside[last] {
			find(id).keys = w.keys
		}
		for id := range rows {
			find(id)
		}
		left := map[string]bool{} // to an admin
		for id, w := range now {
			row := rows[id]
			r := Ruling{}
			if row == nil {
				r = w.JudgeLost(at, true)
			} else {
				w.row = row
				r = w.JudgeRow(at, true)
			}
			if r.Row != nil {
				row = r.Row
			}
			left[id] = r.Verdict == Quarantine
			told, was := h.told[id]
			switch {
			case row == nil || left[id] || row.Reason == engine.ReasonBrainMissing || row.State == engine.Destroying:
			case was && (told.ProductID != row.ProductID || told.UserID != row.UserID) && len(w.keys) > 0:
				t.Fatalf("engine %s is given to %s, but %+v was given its key", id, row.UserID, told)
			}
			owner := h.rows[last][id]
			if owner == nil || owner.ProductID == engine.WarmProduct || owner.State == engine.Destroying || left[id] {
				continue
			}
			if row == nil || row.ProductID != owner.ProductID || row.UserID != owner.UserID || row.Reason == engine.ReasonBrainMissing {
				t.Fatalf("engine %s of %s is %+v (%s)", id, owner.UserID, row, r.Why)
			}
		}
	})
}

// Contradictory evidence, and evidence without an owner, is left to an admin.
func TestJudgeLostQuarantines(t *testing.T) {
	owner := secrets.Owner{Deployment: simDeployment, ProductID: "p", UserID: "u", EngineID: "e"}
	whole := func(change func(*Evidence)) *Evidence {
		w := &Evidence{
			id: "e", deployment: simDeployment, keys: []*secrets.EngineKey{{Key: "k", Owner: owner, Version: 1}}, job: &jobs.Engine{ProductID: "p", UserID: "u", Count: 1},
			volumes: []*cluster.Volume{{ID: "v"}},
		}
		change(w)
		return w
	}
	foreign := owner
	foreign.Deployment = "another"
	warm := owner
	warm.ProductID = engine.WarmProduct
	for name, tc := range map[string]struct {
		w    *Evidence
		want Verdict
	}{
		"OK":                {whole(func(*Evidence) {}), Rebuild},
		"NoOwner":           {whole(func(w *Evidence) { w.keys[0].Owner = secrets.Owner{} }), Quarantine},
		"NoKey":             {whole(func(w *Evidence) { w.keys = nil }), Quarantine},
		"ProcessAlone":      {whole(func(w *Evidence) { w.keys, w.volumes, w.live = nil, nil, 1 }), Quarantine},
		"AnotherUser":       {whole(func(w *Evidence) { w.job.UserID = "x" }), Quarantine},
		"TwoVolumes":        {whole(func(w *Evidence) { w.volumes = append(w.volumes, &cluster.Volume{ID: "w"}) }), Quarantine},
		"WarmOfAUser":       {whole(func(w *Evidence) { w.keys[0].Owner = warm }), Quarantine},
		"Warm":              {whole(func(w *Evidence) { w.keys[0].Owner, w.job.ProductID = warm, engine.WarmProduct }), ""},
		"AnotherDeployment": {whole(func(w *Evidence) { w.keys[0].Owner = foreign }), ""},
		"GoneSince":         {whole(func(w *Evidence) { w.keys, w.volumes, w.job, w.live = nil, nil, nil, 1 }), ""}, // destroyed after the list of jobs was read
		"VolumeAlone":       {whole(func(w *Evidence) { w.keys, w.job = nil, nil }), ""},
		"KeyAlone":          {whole(func(w *Evidence) { w.volumes, w.job = nil, nil }), Quarantine}, // Nomad's servers may have lost their state, too
		"KeyOfNobodyAlone":  {whole(func(w *Evidence) { w.volumes, w.job, w.keys[0].Owner = nil, nil, secrets.Owner{} }), ""},
		"WarmKeyAlone":      {whole(func(w *Evidence) { w.volumes, w.job, w.keys[0].Owner = nil, nil, warm }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if r := tc.w.JudgeLost(time.Now(), true); r.Verdict != tc.want {
				t.Errorf("got %q (%s), want %q", r.Verdict, r.Why, tc.want)
			}
		})
	}
}

// A provision that was in progress at the time of the backup, and whose engine was
// destroyed since, does not continue under the used id.
func TestProvisionOfThenIsUndone(t *testing.T) {
	row := &engine.Row{EngineID: "e", ProductID: "p", UserID: "u", State: engine.Provisioning, Op: &engine.Operation{ID: "o", Kind: engine.OpProvision, Step: "key"}}
	undone := engine.Operation{Kind: engine.OpDestroy, Step: "first", Undo: "undone"}
	w := &Evidence{id: "e", deployment: simDeployment, undone: undone, row: row}
	r := w.JudgeRow(time.Now(), true)
	if r.Verdict != Correct || r.Row.State != engine.Destroying || r.Row.Op.Kind != engine.OpDestroy || r.Row.Op.Undo == "" || r.Row.Op.ID != "o" {
		t.Fatalf("%s: %+v", r.Verdict, r.Row)
	}
	w.row = r.Row
	if r := w.JudgeRow(time.Now(), true); r.Verdict != "" {
		t.Errorf("judged once more: %s", r.Verdict)
	}
	if r := (&Evidence{id: "e", deployment: simDeployment, row: row}).JudgeRow(time.Now(), false); r.Verdict != "" {
		t.Errorf("in a registry that lacks rows: %s", r.Verdict)
	}
}
