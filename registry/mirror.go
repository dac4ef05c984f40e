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
	rows    map[string]map[string]*engine.Row // by shard, and by the row's name
	byID    map[string]*engine.Row            // by the engine_id
	removed map[string]uint64                 // by the row's name: the last index of a row that this store removed
	tenants map[string]*tenantRows
	seen    changes         // what was seen of changes/ last
	anew    bool            // lists are the truth until all rows are listed, whatever their indexes
	young   map[string]bool // rows, by name, that came or went since a list of the truth was begun; nil: none is
	synced  chan struct{}
	fresh   time.Time
	// unreadable are the rows that cannot be read, by their names; twins those of which
	// two or more name one engine_id, by that.
	unreadable map[string]*Unreadable
	twins      map[string][]*engine.Row
}

// NewMirror returns a mirror of the store's rows, empty until Run has filled it.
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
func (m *Mirror) ByID(engineID string) *engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byID[engineID]
}

// All are the rows of all products, in no order.
func (m *Mirror) All() []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*engine.Row, 0, len(m.byID))
	for _, e := range m.below("") {
		all = append(all, e)
	}
	return all
}

// below are the names of the rows below a part of engines/. The lock is held.
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

// follow lists all rows and then what changes, until it is time to list all
// again. Only it changes what was seen.
func (m *Mirror) follow(ctx context.Context) error {
	now, err := m.changesSince(ctx, 0)
	if err != nil {
		return err
	}
	if _, _, older := now.olderThan(m.seen); older { // it was restored while nobody followed
		m.wentBack(ctx, now)
	}
	// In parts: each has a time limit of its own, and none takes much memory. A row
	// that moves meanwhile is in a shard that has changed since.
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

// listed notes which state of the shards the rows are of.
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
	told, unreadable := map[string]*engine.Row{}, map[string]*Unreadable{} // nil: one that cannot be read
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
