package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

// kept is what the store keeps about a row or a product as it was read, in its field
// Stored, out of everybody else's way.
type kept struct {
	state   engine.State // that Consul holds at the row's Index, to check moves against
	sum     uint64       // of the value that the row was decoded from
	unknown *unknown     // what a newer version of the service wrote into it
}

// keptOf is what a field Stored says; nothing, of what was never stored.
func keptOf(stored any) kept {
	k, _ := stored.(kept)
	return k
}

// textSeed makes sums of values that nobody outside this process can aim at.
var textSeed = maphash.MakeSeed()

// sum tells a value from any other that its key had at the same index: a Consul
// that was restored counts again from where it was.
func (v stored) sum() uint64 { return maphash.Bytes(textSeed, v.text) }

// row is the engine's row that was read: the mirror's where it is of the very same
// value, since to decode one costs more than all else that an admit does here. It
// is shared, and not to be changed. *Unreadable: it is no row of the user that its key
// names, or a newer version of the service wrote it.
func (s *Store) row(v stored) (*engine.Row, error) {
	if e := s.mirror.row(s.nameOf(v)); e != nil && e.Index == v.index && keptOf(e.Stored).sum == v.sum() {
		return e, nil
	}
	return s.decodeEngine(v)
}

// nameOf is the row's name in the key of an engine's row.
func (s *Store) nameOf(v stored) string { return v.key[len(s.prefix+enginesBelow):] }

func (s *Store) decodeEngine(v stored) (*engine.Row, error) {
	value, err := v.value()
	if err != nil {
		return nil, unavailable(err)
	}
	e := new(engine.Row)
	if err := json.Unmarshal(value, e); err != nil {
		return nil, s.unreadableRow(v, false, err)
	}
	if err := checkEngine(e, s.nameOf(v)); err != nil {
		return nil, s.unreadableRow(v, false, err)
	}
	if !slices.Contains(engine.States, e.State) {
		return nil, s.unreadableRow(v, true, fmt.Errorf("registry: this version knows no state %q", e.State))
	}
	e.Index, e.Stored = v.index, kept{e.State, v.sum(), engineKind.unknownIn(value, opID(e))}
	return e, nil
}

// checkEngine says what keeps a row that was decoded from being the row of its name.
func checkEngine(e *engine.Row, name string) error {
	product, user, err := parseRowName(name)
	switch {
	case err != nil:
		return err
	case product != e.ProductID || user != e.UserID:
		return errForeignRow
	case e.EngineID == "" || e.State == "":
		return errors.New("registry: the row names no engine or no state")
	}
	return nil
}

// unreadableRow is what is known of a row that cannot be read: whose it is, unless its
// key is no user's.
func (s *Store) unreadableRow(v stored, newer bool, err error) *Unreadable {
	u := &Unreadable{Key: v.key, Index: v.index, Newer: newer, Err: err}
	u.ProductID, u.UserID, _ = parseRowName(s.nameOf(v))
	return u
}

func decodeStored[T any](v stored) (*T, error) {
	value, err := v.value()
	if err != nil {
		return nil, unavailable(err)
	}
	return decode[T](&consul.KVPair{Key: v.key, Value: value, ModifyIndex: v.index})
}

// maxDecoded bounds the products that are kept decoded: 10,000 take about 10 MB.
const maxDecoded = 10_000

// decoded keeps what products were decoded to, by their keys. What it gives out was
// decoded from the very value that was read now, so it is never out of date.
type decoded struct {
	mu       sync.Mutex
	products map[string]decodedProduct
}

type decodedProduct struct {
	sum     uint64
	product *engine.Product
}

// of decodes a value. The product is shared, and not to be changed.
func (d *decoded) of(v stored) (*engine.Product, error) {
	sum := v.sum()
	d.mu.Lock()
	known, found := d.products[v.key]
	d.mu.Unlock()
	if found && known.product.Index == v.index && known.sum == sum {
		return known.product, nil
	}
	value, err := v.value()
	if err != nil {
		return nil, unavailable(err)
	}
	p, err := decodeProduct(&consul.KVPair{Key: v.key, Value: value, ModifyIndex: v.index})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.products == nil {
		d.products = map[string]decodedProduct{}
	}
	if _, again := d.products[v.key]; !again && len(d.products) >= maxDecoded {
		for some := range d.products { // any one: the map's order is random
			delete(d.products, some)
			break
		}
	}
	d.products[v.key] = decodedProduct{sum, p}
	return p, nil
}
