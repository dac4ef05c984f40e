package registry

import (
	"context"
	"iter"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

const (
	// mirrorWait limits one blocking query, so that the age of the mirror shows if Consul
	// died without notice.
	mirrorWait = 10 * time.Second
	// mirrorRelist is the interval at which all rows are listed again, in case a change was
	// missed.
	mirrorRelist = 5 * time.Minute
	// mirrorGather is how long changes are collected before their shards are listed,
	// because many rows of a busy fleet change together. What this store writes itself is
	// visible at once.
	mirrorGather = 50 * time.Millisecond
	// mirrorRetry prevents a busy loop while Consul is unavailable.
	mirrorRetry = time.Second
)

// mirrorParts are the first digits of the shards.
const mirrorParts = "0123456789abcdef"

// Mirror contains all rows in memory, for lists and counts. It is never used for a key or
// for a decision about an engine, unless Consul has just returned exactly the same row (see
// Store.row). It follows the 256 keys below changes/ with one blocking query, and lists
// only the shards that changed. What this store writes itself is in it at once.
//
// The rows that it returns are shared, and nobody may modify them.
type Mirror struct {
	store *Store
	log   hclog.Logger

	mu      sync.RWMutex
	rows    map[string]map[string]*engine.Row // by shard, and by the row's name
	byID    map[string]*engine.Row            // by the engine_id
	removed map[string]uint64                 // by the row's name: the last index of a row that this store removed
	tenants map[string]*tenantRows
	seen    changes         // the last known state of changes/
	anew    bool            // lists replace all rows, whatever their indexes, until all are listed
	young   map[string]bool // rows, by name, that came or went since a consistent list began; nil: no such list is in progress
	synced  chan struct{}
	fresh   time.Time
	// unreadable are the rows that cannot be read, by name. twins are rows that share an
	// engine_id, by that.
	unreadable map[string]*Unreadable
	twins      map[string][]*engine.Row
}

// NewMirror returns a mirror of the store's rows. It is empty until Run has filled it.
func (s *Store) NewMirror(log hclog.Logger) *Mirror {
	m := &Mirror{
		store: s, log: log, rows: map[string]map[string]*engine.Row{}, byID: map[string]*engine.Row{}, removed: map[string]uint64{}, tenants: map[string]*tenantRows{},
		synced: make(chan struct{}), unreadable: map[string]*Unreadable{}, twins: map[string][]*engine.Row{},
	}
	s.mirror = m
	return m
}

// Run keeps the mirror filled until ctx ends.
func (m *Mirror) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("cannot follow the engine rows; reading all again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(mirrorRetry):
			}
		}
	}
}

// Synced returns a channel that is closed when the mirror was filled for the first time.
func (m *Mirror) Synced() <-chan struct{} { return m.synced }

// Age returns how long ago the mirror was known to be complete. While nothing changes, it
// can be up to mirrorWait.
func (m *Mirror) Age() time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return time.Since(m.fresh)
}

// ByID returns the row of an engine_id, or nil.
func (m *Mirror) ByID(engineID string) *engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byID[engineID]
}

// All returns the rows of all products, in no order.
func (m *Mirror) All() []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*engine.Row, 0, len(m.byID))
	for _, e := range m.below("") {
		all = append(all, e)
	}
	return all
}

// below returns the names of the rows below a part of engines/. The caller holds the lock.
func (m *Mirror) below(part string) iter.Seq2[string, *engine.Row] {
	return func(yield func(string, *engine.Row) bool) {
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

// follow lists all rows and then what changes, until it is time to list all rows again.
// Only it changes seen.
func (m *Mirror) follow(ctx context.Context) error {
	now, err := m.changesSince(ctx, 0)
	if err != nil {
		return err
	}
	if _, _, older := now.olderThan(m.seen); older { // it was restored while nobody followed it
		m.wentBack(ctx, now)
	}
	// All rows are listed in parts: each has its own time limit, and none needs much
	// memory. A row that moves meanwhile is in a shard that has changed since.
	for _, part := range mirrorParts {
		if err := m.list(ctx, string(part), true); err != nil {
			return err
		}
	}
	m.anew = false
	m.listed(now)
	for due := time.Now().Add(mirrorRelist); time.Now().Before(due); {
		now, err := m.changesSince(ctx, m.seen.index)
		if err != nil {
			return err
		}
		if _, _, older := now.olderThan(m.seen); older {
			m.wentBack(ctx, now)
			return nil
		}
		if now.index != m.seen.index && !gather(ctx) {
			return ctx.Err()
		}
		for shard, at := range now.shards {
			if m.seen.shards[shard] == at {
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

// gather waits for mirrorGather; it returns false if ctx has ended.
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

// listed records the state of the shards that the rows are from.
func (m *Mirror) listed(now changes) {
	m.mu.Lock()
	m.seen, m.fresh = now, time.Now()
	m.mu.Unlock()
	select {
	case <-m.synced:
	default:
		close(m.synced)
	}
}

// list reads the rows below a part of engines/ and stores them. A row that is not in the
// list, but that came by a later write, is not missing. Consul determines how new a list is
// by the rows that exist or were removed recently; removals from earlier than that (15
// minutes: TombstoneTTL in its agent/consul/config.go) do not count. With truth, the list
// is read consistently and replaces what this store had before.
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
	told, unreadable := map[string]*engine.Row{}, map[string]*Unreadable{} // nil: a row that cannot be read
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
	if truth {
		m.restored(told)
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
