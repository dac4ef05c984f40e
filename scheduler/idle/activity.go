package idle

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// flushEvery is the interval at which a replica reports its admits. An engine is put to
// sleep two to three flushes after it was found idle.
const flushEvery = time.Second

// Activity is what this replica knows of its own admits: which engines were admitted since
// its last report, and which admits are in progress. It is only in memory, so that an admit
// need not write.
type Activity struct {
	session func() string // Replica.Session

	mu      sync.Mutex
	seq     uint64 // of the newest snapshot
	after   uint64 // Seq and Index of the newest one that was certainly written
	seen    uint64
	served  map[uint64]bool // since the newest snapshot
	telling map[uint64]bool // in the newest snapshot, until that is written
	flying  map[*Visit]struct{}
}

// NewActivity returns the Activity of a replica; session returns its session, or "" if it
// has none.
func NewActivity(session func() string) *Activity {
	return &Activity{session: session, served: map[uint64]bool{}, telling: map[uint64]bool{}, flying: map[*Visit]struct{}{}}
}

// Visit is an admit in progress.
type Visit struct {
	a      *Activity
	engine uint64
	since  uint64 // value of seen when it arrived
	// session is the replica's session from before the row was last read; "" if it had
	// none.
	session string
}

// Enter records an admit before anything is read for it. Leave ends it.
func (a *Activity) Enter(engine uint64) *Visit {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &Visit{a: a, engine: engine, since: a.seen}
	a.flying[v] = struct{}{}
	return v
}

// Look must be called before each read of the row that the result may be based on.
func (v *Visit) Look() { v.session = v.a.session() }

// Serve records that the admit is granted, and reports whether it may be: only while the
// session that the replica had before it read the row still lives. A leader that finds no
// key of this replica relies on this: what the replica read before is not used for a grant
// any more.
func (v *Visit) Serve() bool {
	now := v.a.session()
	if now == "" || now != v.session {
		return false
	}
	v.a.mu.Lock()
	defer v.a.mu.Unlock()
	v.a.served[v.engine] = true
	return true
}

// Leave ends a visit.
func (v *Visit) Leave() {
	v.a.mu.Lock()
	defer v.a.mu.Unlock()
	delete(v.a.flying, v)
}

// snapshot returns the next flush. The content of a flush that was not certainly written
// goes into the following one.
func (a *Activity) snapshot() *registry.Flush {
	a.mu.Lock()
	defer a.mu.Unlock()
	for engine := range a.served {
		a.telling[engine] = true
	}
	clear(a.served)
	a.seq++
	f := &registry.Flush{Seq: a.seq, After: a.after, Seen: a.seen, Flying: make(map[uint64]uint64, len(a.flying))}
	for engine := range a.telling {
		f.Served = append(f.Served, engine)
	}
	for v := range a.flying {
		if since, known := f.Flying[v.engine]; !known || v.since < since {
			f.Flying[v.engine] = v.since
		}
	}
	return f
}

// wrote records that the newest snapshot was written.
func (a *Activity) wrote(f *registry.Flush) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.after, a.seen = f.Seq, f.Index
	clear(a.telling)
}

// Flushes is where this replica writes its reports.
type Flushes interface {
	PutFlush(ctx context.Context, f *registry.Flush) error
}

// Run reports this replica's admits until ctx ends.
func (a *Activity) Run(ctx context.Context, store Flushes, log hclog.Logger) {
	failing := false
	for pause.For(ctx, flushEvery) {
		if a.session() == "" {
			continue
		}
		f := a.snapshot()
		err := store.PutFlush(ctx, f)
		if err == nil {
			a.wrote(f)
		} else if !failing && ctx.Err() == nil {
			log.Warn("cannot report which engines are in use; nothing is put to sleep meanwhile", "error", err)
		}
		failing = err != nil
	}
}
