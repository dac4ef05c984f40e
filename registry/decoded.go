package registry

import (
	"sync"

	consul "github.com/hashicorp/consul/api"
)

// maxDecoded bounds the rows that are kept decoded: 10,000 of them are about
// 20 MB.
const maxDecoded = 10_000

// decoded keeps what values were decoded to, by their keys. What it gives out was
// decoded from the very bytes that were read now, so it is never out of date.
type decoded[T any] struct {
	decode func(*consul.KVPair) (*T, error)

	mu   sync.Mutex
	rows map[string]decodedRow[T]
}

type decodedRow[T any] struct {
	text  string
	index uint64
	row   *T
}

// of decodes a value. The row is shared, and not to be changed.
func (d *decoded[T]) of(v stored) (*T, error) {
	d.mu.Lock()
	known, found := d.rows[v.key]
	d.mu.Unlock()
	if found && known.index == v.index && known.text == string(v.text) {
		return known.row, nil
	}
	value, err := v.value()
	if err != nil {
		return nil, unavailable(err)
	}
	row, err := d.decode(&consul.KVPair{Key: v.key, Value: value, ModifyIndex: v.index})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rows == nil {
		d.rows = map[string]decodedRow[T]{}
	}
	if _, again := d.rows[v.key]; !again && len(d.rows) >= maxDecoded {
		for some := range d.rows { // any one: the map's order is random
			delete(d.rows, some)
			break
		}
	}
	d.rows[v.key] = decodedRow[T]{string(v.text), v.index, row}
	return row, nil
}
