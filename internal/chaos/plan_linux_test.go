package chaos

import (
	"errors"
	"slices"
	"testing"
	"time"
)

var errReach = errors.New("not as wanted")

// TestPlan: a seed and a time give one plan, which does not exceed the time, except for the
// faults of every run.
func TestPlan(t *testing.T) {
	for seed := range uint64(200) {
		for _, within := range []time.Duration{0, 45 * time.Second, 8 * time.Minute} {
			faults := plan(seed, within)
			if !slices.EqualFunc(faults, plan(seed, within), func(a, b fault) bool { return a.String() == b.String() && a.rest == b.rest }) {
				t.Fatalf("seed %d gives two plans", seed)
			}
			total, killed, paused, restored := time.Duration(0), false, false, false
			for _, f := range faults {
				total += f.hold + f.rest
				killed = killed || f.how == "kill" && f.targets[0] == leader
				paused = paused || f.how == "pause" && f.targets[0] == leader && f.hold > sessionTTL
				restored = restored || f.how == "restore"
				if len(f.targets) == 0 || len(f.targets) > 2 || f.hold <= 0 || f.rest <= 0 {
					t.Errorf("seed %d: fault %v", seed, f)
				}
			}
			if !killed || !paused || !restored || total > within+40*time.Second {
				t.Errorf("seed %d: killed %t, paused %t, restored %t, %s of %s: %v", seed, killed, paused, restored, total, within, faults)
			}
		}
	}
}

// TestAudited: missing and wrong rows of the log are found.
func TestAudited(t *testing.T) {
	now, ms := time.Now(), int64(100)
	row := func(action, outcome, request string) record {
		return record{Timestamp: now, UserID: "u", EngineID: "A", Action: action, RequestID: request, Outcome: outcome, DurationMS: &ms}
	}
	made := func(k kind, status int, code string) *call {
		return &call{kind: k, user: "u", requestID: "r", began: now, ended: now.Add(100 * time.Millisecond), answer: answer{status: status, code: code}}
	}
	for name, c := range map[string]struct {
		call *call
		rows []record
		bad  bool
	}{
		"OK done":             {made(provision, 200, ""), []record{row("provision", "ok", "r")}, false},
		"OK refused":          {made(provision, 409, "ENGINE_ALREADY_EXISTS"), nil, false},
		"OK refused late":     {made(provision, 429, "QUOTA_EXCEEDED"), []record{row("provision", "QUOTA_EXCEEDED", "r")}, false},
		"OK joined":           {made(stop, 200, ""), []record{row("stop", "ok", "another")}, false},
		"OK nobody heard":     {made(stop, 0, ""), []record{row("stop", "interrupted", "r")}, false},
		"OK interrupted":      {made(provision, 503, "BACKEND_UNAVAILABLE"), []record{row("provision", "interrupted", "r"), row("destroy", "ok", "another")}, false},
		"OK never claimed":    {made(provision, 503, "BACKEND_UNAVAILABLE"), []record{{Timestamp: now, UserID: "u", Action: "provision", RequestID: "r", Outcome: "interrupted"}}, false},
		"OK busy, joined":     {made(stop, 200, ""), []record{row("stop", "ENGINE_BUSY", "r"), row("stop", "ok", "another")}, false},
		"ErrBusyAlone":        {made(stop, 200, ""), []record{row("stop", "ENGINE_BUSY", "r")}, true},
		"ErrBusyAndDone":      {made(stop, 200, ""), []record{row("stop", "ENGINE_BUSY", "r"), row("stop", "ok", "r")}, true},
		"ErrNoRow":            {made(provision, 200, ""), []record{row("provision", "ok", "another")}, true},
		"ErrInterrupted":      {made(stop, 503, "BACKEND_UNAVAILABLE"), []record{row("stop", "interrupted", "r")}, true},
		"ErrOutcome":          {made(stop, 200, ""), []record{row("stop", "STOP_UNCONFIRMED", "r")}, true},
		"ErrDoneNotRefused":   {made(provision, 429, "QUOTA_EXCEEDED"), []record{row("provision", "ok", "r")}, true},
		"ErrTwice":            {made(destroy, 200, ""), []record{row("destroy", "ok", "r"), row("destroy", "ok", "r")}, true},
		"ErrAnotherAction":    {made(rotate, 200, ""), []record{row("stop", "ok", "r")}, true},
		"ErrJoinedNothing":    {made(stop, 200, ""), []record{row("start", "ok", "another")}, true},
		"ErrAdmitInterrupted": {made(admit, 200, ""), []record{row("provision", "interrupted", "r")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := audited([]*call{c.call}, c.rows); (len(got) > 0) != c.bad {
				t.Errorf("got %q", got)
			}
		})
	}
}
