package idle

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/registry"
)

func TestIdleFor(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	wall := func(d time.Duration) time.Time { return now.UTC().Round(0).Add(d) }
	for name, c := range map[string]struct {
		used, woke, keptAwake time.Time
		want                  time.Duration
	}{
		"SinceItsLastUse":        {used: ago(time.Minute), woke: ago(time.Hour), want: time.Minute},
		"SinceItRuns":            {used: ago(time.Hour), woke: ago(time.Minute), want: time.Minute},
		"KeptAwake":              {used: ago(time.Hour), woke: ago(time.Hour), keptAwake: wall(time.Minute), want: -time.Minute},
		"SinceItIsNotKeptAwake":  {used: ago(time.Hour), woke: ago(time.Hour), keptAwake: wall(-time.Minute), want: time.Minute},
		"KeptAwakeLongAgo":       {used: ago(time.Minute), woke: ago(time.Hour), keptAwake: wall(-time.Hour), want: time.Minute},
		"InUseInTheSameInstant":  {used: now, woke: ago(time.Hour), want: 0},
		"KeptAwakeAndInUseSince": {used: now, woke: now, keptAwake: wall(time.Hour), want: -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if got := idleFor(now, c.used, c.woke, c.keptAwake); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// Whenever uses may have been missed, every engine gets a full idle period.
func TestFeedFloor(t *testing.T) {
	const engine = 1
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	flush := func(seq, after uint64, served ...uint64) *registry.Flush {
		return &registry.Flush{Seq: seq, After: after, Seen: after, Served: served}
	}
	view := func(born uint64, flushes ...*registry.Flush) *registry.Activity {
		return &registry.Activity{Replicas: map[string]uint64{"a": 1, "b": born}, Flushes: map[string][]*registry.Flush{"a": {flush(1, 0)}, "b": flushes}}
	}
	without := &registry.Activity{Replicas: map[string]uint64{"a": 1}, Flushes: map[string][]*registry.Flush{"a": {flush(1, 0)}}}
	all := flush(3, 2)
	all.All = true
	for name, c := range map[string]struct {
		then   *registry.Activity
		when   int // seconds after the first view
		floor  int
		lastly int // the last known use of the engine
	}{
		"NothingNew":                  {view(7, flush(1, 0), flush(2, 1, engine)), 1, 0, 0},
		"Used":                        {view(7, flush(2, 1, engine), flush(3, 2, engine)), 1, 0, 1},
		"AnotherIsUsed":               {view(7, flush(2, 1, engine), flush(3, 2, 99)), 1, 0, 0},
		"AFlushThatFailedIsInTheNext": {view(7, flush(4, 2, engine)), 1, 0, 1},
		"AFlushIsMissed":              {view(7, flush(4, 3)), 1, 1, 1},
		"TooMuchToTell":               {view(7, flush(2, 1), all), 1, 1, 1},
		"AReplicaIsGone":              {without, 1, 1, 1},
		"AReplicaHasAnotherSession":   {view(8, flush(3, 2)), 1, 1, 1},
		"NothingIsHeardForTooLong":    {view(7, flush(2, 1, engine)), 9, 9, 9},
		"NothingIsHeardButNotForLong": {view(7, flush(2, 1, engine)), 7, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFeed()
			f.observe(view(7, flush(1, 0), flush(2, 1, engine)), at(0))
			f.observe(c.then, at(c.when))
			if !f.floor.Equal(at(c.floor)) {
				t.Errorf("the floor is %s after the first view, want %d s", f.floor.Sub(start), c.floor)
			}
			if got := f.lastUsed(engine); !got.Equal(at(c.lastly)) {
				t.Errorf("last used %s after the first view, want %d s", got.Sub(start), c.lastly)
			}
		})
	}
	if newFeed().settled(engine, 0) {
		t.Error("a leader that knows no replica, not even itself, assumes that there are no admits")
	}
}

// Unconfirmed writes are repeated in the next flush; confirmed ones are reported once.
func TestActivityLosesNothing(t *testing.T) {
	session := "s1"
	a := NewActivity(func() string { return session })
	served := func(engine uint64) bool {
		v := a.Enter(engine)
		defer v.Leave()
		v.Look()
		return v.Serve()
	}
	flush := func(index uint64, want ...uint64) {
		t.Helper()
		f := a.snapshot()
		told := map[uint64]bool{}
		for _, engine := range f.Served {
			told[engine] = true
		}
		wanted := map[uint64]bool{}
		for _, engine := range want {
			wanted[engine] = true
		}
		if diff := cmp.Diff(wanted, told); diff != "" {
			t.Errorf("reported (-want +got):\n%s", diff)
		}
		if f.Index = index; index > 0 {
			a.wrote(f)
		}
	}
	served(1)
	flush(0, 1) // its write fails
	served(2)
	flush(10, 1, 2)
	flush(11)
	during := a.Enter(3)
	if f := a.snapshot(); f.Flying[3] != 11 || f.Seen != 11 || f.After != 3 || f.Seq != 4 {
		t.Errorf("the flush is %+v", f)
	}
	served(3) // another admit of the same engine, and older ones count
	a.wrote(&registry.Flush{Seq: 4, Index: 12})
	second := a.Enter(3)
	if f := a.snapshot(); f.Flying[3] != 11 {
		t.Errorf("flying since %d", f.Flying[3])
	}
	during.Leave()
	if f := a.snapshot(); f.Flying[3] != 12 || len(f.Served) != 1 {
		t.Errorf("flying since %d, served %v", f.Flying[3], f.Served)
	}
	second.Leave()
	if f := a.snapshot(); len(f.Flying) != 0 {
		t.Errorf("flying: %v", f.Flying)
	}

	v := a.Enter(4)
	v.Look()
	if session = "s2"; v.Serve() {
		t.Error("granted under another session than the row was read under")
	}
	if session = ""; v.Serve() {
		t.Error("granted without a session")
	}
	if v.Look(); v.Serve() {
		t.Error("granted without a session, now and before")
	}
	session = "s2"
	if v.Look(); !v.Serve() {
		t.Error("not granted")
	}
}
