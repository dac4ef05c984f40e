package registry

import (
	"context"
	"iter"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

const (
	// mirrorWait bounds one blocking query, so that a Consul that died without a
	// word shows as an age.
	mirrorWait = 10 * time.Second
	// mirrorRelist is how often all rows are listed anew: the truth, should
	// anything have been missed.
	mirrorRelist = 5 * time.Minute
	// mirrorGather is how long changes are gathered before their shards are
	// listed: a busy fleet changes many rows at once. What this store writes is
	// there without that.
	mirrorGather = 50 * time.Millisecond
	// mirrorRetry keeps a Consul that is away from being called in a hot loop.
	mirrorRetry = time.Second
)

// mirrorParts are the first digits of the shards.
const mirrorParts = "0123456789abcdef"

// Mirror holds all rows in memory, for lists and counts: never for a key, nor
// for a decision about an engine, but where Consul has just answered the very same
// row (see Store.row). It follows the 256 keys below changes/ by one
// blocking query and lists only the shards that changed. What this store itself
// writes is in it at once.
//
// The rows that it hands out are shared: nobody may change them, and it does not
// either.
type Mirror struct {
	store *Store
	log   hclog.Logger

	mu      sync.RWMutex
	rows    map[string]map[string]*Engine // by shard, and by the row's name
	byID    map[string]*Engine            // by the engine_id
	removed map[string]uint64             // by the row's name: the last index of a row that this store removed
	tenants map[string]*tenantRows
	shards  map[string]uint64 // the index of changes/<shard> that is listed
	newest  uint64            // the highest index of changes/ that was seen; only follow uses it
	anew    bool              // lists are the truth until all rows are listed, whatever their indexes
	young   map[string]bool   // rows, by name, that came since a list of the truth was begun; nil: none is
	synced  chan struct{}
	fresh   time.Time
	// unreadable are the rows that cannot be read, by their names; twins those of which
	// two or more name one engine_id, by that.
	unreadable map[string]*Unreadable
	twins      map[string][]*Engine
}

// NewMirror returns a mirror of the store's rows, empty until Run has filled it.
func (s *Store) NewMirror(log hclog.Logger) *Mirror {
	m := &Mirror{
		store: s, log: log, rows: map[string]map[string]*Engine{}, byID: map[string]*Engine{}, removed: map[string]uint64{}, tenants: map[string]*tenantRows{},
		shards: map[string]uint64{}, synced: make(chan struct{}), unreadable: map[string]*Unreadable{}, twins: map[string][]*Engine{},
	}
	s.mirror = m
	return m
}

// Run keeps the mirror filled until ctx ends.
func (m *Mirror) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("following the engine rows failed; reading all again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(mirrorRetry):
			}
		}
	}
}

// Synced is closed when the mirror was filled for the first time.
func (m *Mirror) Synced() <-chan struct{} { return m.synced }

// Age is how long ago the mirror was known to be complete; while nothing changes
// it is up to mirrorWait.
func (m *Mirror) Age() time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return time.Since(m.fresh)
}

// ByID is the row of an engine_id, or nil.
func (m *Mirror) ByID(engineID string) *Engine {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byID[engineID]
}

// All are the rows of all products, in no order.
func (m *Mirror) All() []*Engine {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*Engine, 0, len(m.byID))
	for _, e := range m.below("") {
		all = append(all, e)
	}
	return all
}

// below are the names of the rows below a part of engines/. The lock is held.
func (m *Mirror) below(part string) iter.Seq2[string, *Engine] {
	return func(yield func(string, *Engine) bool) {
		for shard, rows := range m.rows {
			if !strings.HasPrefix(shard+"/", part) {
				continue
			}
			for name, e := range rows {
				if !yield(name, e) {
					return
				}
			}
		}
	}
}

// follow lists all rows and then what changes, until it is time to list all
// again.
func (m *Mirror) follow(ctx context.Context) error {
	changes, index, err := m.changes(ctx, 0)
	if err != nil {
		return err
	}
	if index < m.newest { // it was restored while nobody followed
		m.wentBack(ctx, index)
	}
	m.newest = index
	// In parts: each has a time limit of its own, and none takes much memory. A row
	// that moves meanwhile is in a shard that has changed since.
	for _, part := range mirrorParts {
		if err := m.list(ctx, string(part), true); err != nil {
			return err
		}
	}
	m.anew = false
	m.listed(changes)
	for due := time.Now().Add(mirrorRelist); time.Now().Before(due); {
		now, next, err := m.changes(ctx, index)
		if err != nil {
			return err
		}
		if next < index { // a restored Consul counts anew
			m.wentBack(ctx, next)
			return nil
		}
		if next != index && !gather(ctx) {
			return ctx.Err()
		}
		index, m.newest = next, next
		for shard, at := range now {
			if m.shards[shard] == at {
				continue
			}
			if err := m.list(ctx, shard+"/", false); err != nil {
				return err
			}
		}
		m.listed(now)
	}
	return nil
}

// wentBack takes note of an index that is lower than the newest one: lists are the
// truth now. A server that has just lost the lead may answer from before, too; a
// registry that was restored says so by a consistent read.
func (m *Mirror) wentBack(ctx context.Context, index uint64) {
	m.anew = true
	if _, sure, err := m.changesAt(ctx, consistent(ctx)); err == nil && sure < m.newest {
		m.store.noteBack("changes", m.newest, sure)
	}
	m.newest = index
}

// gather waits for mirrorGather; false: ctx has ended.
func gather(ctx context.Context) bool {
	timer := time.NewTimer(mirrorGather)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// listed notes which state of the shards the rows are of. Only follow uses it.
func (m *Mirror) listed(changes map[string]uint64) {
	m.shards = changes
	m.mu.Lock()
	m.fresh = time.Now()
	m.mu.Unlock()
	select {
	case <-m.synced:
	default:
		close(m.synced)
	}
}

// changes is the index of every shard's last change; it blocks until one is
// newer than index, or mirrorWait is over.
func (m *Mirror) changes(ctx context.Context, index uint64) (map[string]uint64, uint64, error) {
	return m.changesAt(ctx, &consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait})
}

func (m *Mirror) changesAt(ctx context.Context, how *consul.QueryOptions) (map[string]uint64, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait+callTimeout)
	defer cancel()
	const below = "changes/"
	changes := map[string]uint64{}
	now, err := m.store.each(how.WithContext(ctx), below, func(v stored) error {
		changes[v.key[len(m.store.prefix+below):]] = v.index
		return nil
	})
	return changes, now, err
}

// list reads the rows below a part of engines/ and takes them over. What is not among
// them and came by a later write is not missing. Consul tells how new a list is by the
// rows that it knows or has removed of late; of those that were removed before that (15
// minutes: TombstoneTTL in its agent/consul/config.go) it tells nothing. A list of the
// truth is read from a leader that is sure of itself, and then what this store had
// before is gone.
func (m *Mirror) list(ctx context.Context, below string, truth bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	how := (&consul.QueryOptions{}).WithContext(ctx)
	if truth {
		how = consistent(ctx)
		m.mu.Lock()
		m.young = map[string]bool{}
		m.mu.Unlock()
		defer func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.young = nil
		}()
	}
	told, unreadable := map[string]*Engine{}, map[string]*Unreadable{} // nil: one that cannot be read
	index, err := m.store.each(how, enginesBelow+below, func(v stored) error {
		name := m.store.nameOf(v)
		e, err := m.store.row(v)
		if u := asUnreadable(err); u != nil {
			unreadable[name] = u
		}
		told[name] = e
		return nil
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.anew {
		m.forget(below)
	}
	for name := range m.unreadable {
		if strings.HasPrefix(name, below) && unreadable[name] == nil {
			delete(m.unreadable, name)
		}
	}
	for name, e := range told {
		if e != nil {
			m.put(name, e)
		} else if u := unreadable[name]; u != nil {
			m.lose(name, u)
		}
	}
	for name, e := range m.below(below) {
		if _, listed := told[name]; !listed && (e.Index <= index || truth && !m.young[name]) {
			m.drop(name)
		}
	}
	for name := range m.removed {
		if _, listed := told[name]; !listed && strings.HasPrefix(name, below) {
			delete(m.removed, name)
		}
	}
	return nil
}

// forget drops the rows below a part of engines/, and what is known of their
// indexes. The lock is held.
func (m *Mirror) forget(below string) {
	for name := range m.below(below) {
		m.drop(name)
	}
	for name := range m.removed {
		if strings.HasPrefix(name, below) {
			delete(m.removed, name)
		}
	}
}

// put takes a row over, unless a newer one is known. The lock is held.
func (m *Mirror) put(name string, e *Engine) {
	if old := m.at(name); old != nil && old.Index >= e.Index || e.Index <= m.removed[name] {
		return
	}
	if u := m.unreadable[name]; u != nil && u.Index >= e.Index {
		return
	}
	m.drop(name)
	if m.young != nil {
		m.young[name] = true
	}
	delete(m.removed, name)
	delete(m.unreadable, name)
	if m.rows[shardOf(name)] == nil {
		m.rows[shardOf(name)] = map[string]*Engine{}
	}
	m.rows[shardOf(name)][name] = e
	m.putID(e)
	t := m.tenants[e.ProductID]
	if t == nil {
		t = &tenantRows{counts: map[State]int{}}
		m.tenants[e.ProductID] = t
	}
	t.insert(e)
}

// drop forgets a row. The lock is held.
func (m *Mirror) drop(name string) {
	e := m.at(name)
	if e == nil {
		return
	}
	delete(m.rows[shardOf(name)], name)
	m.dropID(e)
	t := m.tenants[e.ProductID]
	if t.remove(e); len(t.rows) == 0 {
		delete(m.tenants, e.ProductID)
	}
}

// row is the row of a name, or nil. A store without a mirror has a nil one.
func (m *Mirror) row(name string) *Engine {
	if m == nil {
		return nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.at(name)
}

// at is the row of a name, or nil. The lock is held.
func (m *Mirror) at(name string) *Engine { return m.rows[shardOf(name)][name] }

// wrote takes over what this store has just written, as another store reads it.
func (m *Mirror) wrote(v stored) {
	if m == nil {
		return
	}
	e, err := m.store.decodeEngine(v)
	if err != nil {
		panic("registry: what was stored is no row: " + err.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(m.store.nameOf(v), e)
}

// erased forgets a row that this store has just removed.
func (m *Mirror) erased(e *Engine) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := rowName(e.ProductID, e.UserID)
	m.removed[name] = e.Index
	delete(m.unreadable, name)
	m.drop(name)
}
