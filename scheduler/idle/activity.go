package idle

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/internal/pause"
	"github.com/septemberai/orch/registry"
)

// flushEvery is how often a replica tells whom it admitted. An engine is put to
// sleep two to three flushes after it was found idle.
const flushEvery = time.Second

// Activity is what this replica knows of the admits that it answers: which
// engines were admitted since it last told, and which admits are not answered
// yet. It is memory alone, so that an admit costs no write.
type Activity struct {
	session func() string // Replica.Session

	mu      sync.Mutex
	seq     uint64 // of the newest snapshot
	after   uint64 // Seq and Index of the newest one that was surely written
	seen    uint64
	served  map[uint64]bool // since the newest snapshot
	telling map[uint64]bool // in the newest snapshot, until that is written
	flying  map[*Visit]struct{}
}

// NewActivity returns the activity of a replica; session tells its session, "" while it has
// none.
func NewActivity(session func() string) *Activity {
	return &Activity{session: session, served: map[uint64]bool{}, telling: map[uint64]bool{}, flying: map[*Visit]struct{}{}}
}

// Visit is an admit that is not answered yet.
type Visit struct {
	a      *Activity
	engine uint64
	since  uint64 // what was seen when it arrived
	// session is the one that the replica held before the row was last read;
	// "" when it held none.
	session string
}

// Enter notes an admit, before anything is read for it. leave ends it.
func (a *Activity) Enter(engine uint64) *Visit {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := &Visit{a: a, engine: engine, since: a.seen}
	a.flying[v] = struct{}{}
	return v
}

// Look comes before each read of the row that the answer may follow from.
func (v *Visit) Look() { v.session = v.a.session() }

// Serve notes that the admit is granted, and says whether it may be: only while
// the session that the replica held before it read the row still lives. A leader
// that finds no key of this replica takes it that what it has read before will
// not be answered any more.
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

// snapshot is the next flush. What is not surely written goes into the one after.
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

// wrote notes that a snapshot, the newest one, was written.
func (a *Activity) wrote(f *registry.Flush) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.after, a.seen = f.Seq, f.Index
	clear(a.telling)
}

// Flushes is where this replica tells of its admits.
type Flushes interface {
	PutFlush(ctx context.Context, f *registry.Flush) error
}

// Run tells of this replica's admits until ctx ends.
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
			log.Warn("cannot tell which engines are in use; nothing is put to sleep meanwhile", "error", err)
		}
		failing = err != nil
	}
}
