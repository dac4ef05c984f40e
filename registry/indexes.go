package registry

import (
	"context"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

const (
	slugsBelow        = "slugs/"
	platformKeysBelow = "platform-keys/"
	engineIDsBelow    = "engine-ids/"
)

// Indexes are the keys by which rows are found: products by slug and by platform key,
// engines by engine_id. Each can be derived from its row.
type Indexes struct {
	slugs, keys, engines map[string]indexed
}

type indexed struct {
	value string
	index uint64
}

// Indexes reads all indexes.
func (s *Store) Indexes(ctx context.Context) (*Indexes, error) {
	x := &Indexes{}
	for below, into := range map[string]*map[string]indexed{slugsBelow: &x.slugs, platformKeysBelow: &x.keys, engineIDsBelow: &x.engines} {
		*into = map[string]indexed{}
		limited, cancel := context.WithTimeout(ctx, fleetTimeout)
		_, err := s.each(consistent(limited), below, func(v stored) error {
			value, err := v.value()
			(*into)[base(v.key)] = indexed{string(value), v.index}
			return err
		})
		cancel()
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// EnginesOf returns the engine_ids that the index assigns to a row.
func (x *Indexes) EnginesOf(u *Unreadable) (ids []string) {
	row := enginesBelow + rowName(u.ProductID, u.UserID)
	for id, at := range x.engines {
		if at.value == row {
			ids = append(ids, id)
		}
	}
	return ids
}

// Fault is an index that does not lead to its row.
type Fault struct {
	// Index is its key below the store's prefix, and Why the fault.
	Index, Why string
	// ProductID and EngineID are what it should lead to; empty: it leads nowhere, and is
	// deleted.
	ProductID, EngineID string

	want string // its right value
	at   uint64 // the index at which it was read; 0: it is missing
	row  string // the key of the row, and the index at which it was read
	seen uint64
}

// Faults returns the indexes that do not lead to their rows. The rows must have been read
// before the indexes; Mend leaves alone what has changed since. A row whose engine_id
// belongs to another row has no index.
func (x *Indexes) Faults(products []*engine.Product, unreadable []*Unreadable, rows []*engine.Row) (faults []Fault) {
	check := func(below, name string, have map[string]indexed, want Fault) {
		at, there := have[name]
		if at.value == want.want {
			return
		}
		want.Index, want.at, want.Why = below+name, at.index, "it is missing"
		if there {
			want.Why = "it does not lead to its row"
		}
		faults = append(faults, want)
	}
	now, slugs := time.Now(), map[string]bool{}
	for _, p := range products {
		want := Fault{ProductID: p.ProductID, want: p.ProductID, row: "products/" + p.ProductID, seen: p.Index}
		if !slugs[p.Slug] {
			check(slugsBelow, p.Slug, x.slugs, want)
		}
		slugs[p.Slug] = true
		check(platformKeysBelow, p.PlatformKeyHash, x.keys, want)
		for _, k := range p.RetiredKeys {
			if now.Before(k.Until) {
				check(platformKeysBelow, k.Hash, x.keys, want)
			}
		}
	}
	for slug, at := range x.slugs {
		if !slugs[slug] && len(unreadable) == 0 { // it may be the slug of an unreadable product
			faults = append(faults, Fault{Index: slugsBelow + slug, Why: "no product has this slug", at: at.index, row: "products/" + at.value})
		}
	}
	named := map[string]int{}
	for _, e := range rows {
		named[e.EngineID]++
	}
	for _, e := range rows {
		if named[e.EngineID] > 1 {
			continue
		}
		row := enginesBelow + rowName(e.ProductID, e.UserID)
		check(engineIDsBelow, e.EngineID, x.engines, Fault{ProductID: e.ProductID, EngineID: e.EngineID, want: row, row: row, seen: e.Index})
	}
	return faults
}

// Mend corrects an index, as the leader, if it and its row have not changed since they were
// read. ErrConflict: they have, or this replica does not lead.
func (s *Store) Mend(ctx context.Context, f Fault) error {
	var ops consul.KVTxnOps
	if f.want == "" {
		ops = append(consul.KVTxnOps{{Verb: consul.KVCheckNotExists, Key: s.prefix + f.row}}, deleteAt(s.prefix+f.Index, f.at)...)
	} else {
		ops = consul.KVTxnOps{
			{Verb: consul.KVCheckIndex, Key: s.prefix + f.row, Index: f.seen},
			{Verb: consul.KVCAS, Key: s.prefix + f.Index, Value: []byte(f.want), Index: f.at},
		}
	}
	ops, err := s.led(ops...)
	if err != nil {
		return err
	}
	_, _, err = s.txn(ctx, ops)
	return err
}
