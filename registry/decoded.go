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
// Stored.
type kept struct {
	state   engine.State // the state in Consul at the row's Index, against which moves are checked
	sum     uint64       // hash of the value that the row was decoded from
	unknown *unknown     // fields that a newer version of the service wrote
}

// keptOf returns the value of a field Stored; zero for what was never stored.
func keptOf(stored any) kept {
	k, _ := stored.(kept)
	return k
}

// textSeed makes hashes of values unpredictable outside this process.
var textSeed = maphash.MakeSeed()

// sum distinguishes a value from another one that its key had at the same index, because a
// restored Consul uses indexes again.
func (v stored) sum() uint64 { return maphash.Bytes(textSeed, v.text) }

// row returns the row that was read. If the mirror has the row with exactly this value,
// that one is returned, because decoding costs more than anything else in an admit. The row
// is shared and must not be modified. *Unreadable: it is not the row of the user in its
// key, or a newer version of the service wrote it.
func (s *Store) row(v stored) (*engine.Row, error) {
	if e := s.mirror.row(s.nameOf(v)); e != nil && e.Index == v.index && keptOf(e.Stored).sum == v.sum() {
		return e, nil
	}
	return s.decodeEngine(v)
}

// nameOf returns the row's name in the key of an engine's row.
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

// checkEngine returns an error if a decoded row is not the row of this name.
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

// unreadableRow returns what is known of a row that cannot be read: its owner, unless the
// key names no user.
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

// maxDecoded limits the number of decoded products that are cached: 10,000 take about 10
// MB.
const maxDecoded = 10_000

// decoded caches decoded products by their keys. It returns only what was decoded from
// exactly the value that was just read, so it is never outdated.
type decoded struct {
	mu       sync.Mutex
	products map[string]decodedProduct
}

type decodedProduct struct {
	sum     uint64
	product *engine.Product
}

// of decodes a value. The product is shared and must not be modified.
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
		for some := range d.products { // an arbitrary one: the order of a map is random
			delete(d.products, some)
			break
		}
	}
	d.products[v.key] = decodedProduct{sum, p}
	return p, nil
}
