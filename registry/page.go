package registry

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
)

// ErrCursor means that the cursor is not from a page of this list.
var ErrCursor = errors.New("registry: this is not a cursor of this list")

// errForeignRow: a row contains another user than its key.
var errForeignRow = errors.New("registry: the row names another owner than its key")

// tenantRows are one product's rows, oldest first.
type tenantRows struct {
	rows   []*engine.Row
	counts map[engine.State]int
}

// before is the order of lists: by creation, then by engine_id.
func before(a, b *engine.Row) int {
	if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
		return c
	}
	return strings.Compare(a.EngineID, b.EngineID)
}

func (t *tenantRows) insert(e *engine.Row) {
	i, _ := slices.BinarySearchFunc(t.rows, e, before)
	t.rows = slices.Insert(t.rows, i, e)
	t.counts[e.State]++
}

func (t *tenantRows) remove(e *engine.Row) {
	if i, found := slices.BinarySearchFunc(t.rows, e, before); found {
		t.rows = slices.Delete(t.rows, i, i+1)
		t.counts[e.State]--
	}
}

// PageQuery selects a part of a product's engines.
type PageQuery struct {
	ProductID string
	State     engine.State // empty: all
	Limit     int
	Offset    int    // number of rows to skip
	Cursor    string // from the previous page; empty: from the start
}

// Page returns rows of a product, oldest first, the number of all matching rows, and the
// cursor of the next page, which is empty on the last. ErrCursor.
func (m *Mirror) Page(q PageQuery) (rows []*engine.Row, total int, next string, err error) {
	from := &engine.Row{}
	if q.Cursor != "" {
		if from, err = parseCursor(q.ProductID, q.Cursor); err != nil {
			return nil, 0, "", err
		}
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	t := m.tenants[q.ProductID]
	if t == nil {
		return nil, 0, "", nil
	}
	total = len(t.rows)
	if q.State != "" {
		total = t.counts[q.State]
	}
	i := 0
	if q.Cursor != "" {
		var found bool
		if i, found = slices.BinarySearchFunc(t.rows, from, before); found {
			i++
		}
	}
	skip := q.Offset
	if q.State == "" {
		i, skip = min(i+skip, len(t.rows)), 0
	}
	for ; i < len(t.rows); i++ {
		e := t.rows[i]
		switch {
		case q.State != "" && e.State != q.State:
			continue
		case skip > 0:
			skip--
			continue
		case len(rows) == q.Limit:
			return rows, total, cursorAfter(q.ProductID, rows[len(rows)-1]), nil
		}
		rows = append(rows, e)
	}
	return rows, total, "", nil
}

// Counts returns how many engines of a product are in each of the six states; product "":
// of all products.
func (m *Mirror) Counts(productID string) map[engine.State]int {
	counts := make(map[engine.State]int, len(engine.States))
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, s := range engine.States {
		counts[s] = 0
		for _, t := range m.of(productID) {
			counts[s] += t.counts[s]
		}
	}
	return counts
}

// ProductCounts is how many engines of a product are in each of the states that occur.
type ProductCounts struct {
	ProductID, Slug string
	Total           int
	ByState         map[engine.State]int
}

// ByProduct returns the counts of every product with engines, in no order.
func (m *Mirror) ByProduct() []ProductCounts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]ProductCounts, 0, len(m.tenants))
	for id, t := range m.of("") {
		all = append(all, ProductCounts{id, t.rows[0].ProductSlug, len(t.rows), maps.Clone(t.counts)})
	}
	return all
}

// Of returns all rows of a product, oldest first.
func (m *Mirror) Of(productID string) (rows []*engine.Row) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, t := range m.of(productID) {
		rows = append(rows, t.rows...)
	}
	return rows
}

// In returns the rows of a product in a state, oldest first; product "": of all products,
// one product after the other.
func (m *Mirror) In(productID string, state engine.State) []*engine.Row {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var rows []*engine.Row
	for _, t := range m.of(productID) {
		for _, e := range t.rows {
			if e.State == state {
				rows = append(rows, e)
			}
		}
	}
	return rows
}

// of returns the rows of one product, or with "" of each product; warm engines belong to
// none. The caller holds the lock.
func (m *Mirror) of(productID string) map[string]*tenantRows {
	if productID == "" {
		all := maps.Clone(m.tenants)
		delete(all, engine.WarmProduct)
		return all
	}
	if t := m.tenants[productID]; t != nil {
		return map[string]*tenantRows{productID: t}
	}
	return nil
}

// cursorAfter returns the cursor for the position after a row of a product's list, whether
// or not the row still exists. Its checksum is not secret; it only detects cursors that are
// from other lists, made up or truncated.
func cursorAfter(productID string, e *engine.Row) string {
	place := strconv.FormatInt(e.CreatedAt.UnixNano(), 10) + " " + e.EngineID
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32([]byte(place), cursorSum(productID, place)))
}

func cursorSum(productID, place string) uint32 {
	return crc32.ChecksumIEEE([]byte(productID + "/" + place))
}

func parseCursor(productID, s string) (*engine.Row, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < crc32.Size {
		return nil, ErrCursor
	}
	place, sum := string(b[:len(b)-crc32.Size]), b[len(b)-crc32.Size:]
	at, id, ok := strings.Cut(place, " ")
	nanos, err := strconv.ParseInt(at, 10, 64)
	if err != nil || !ok || binary.BigEndian.Uint32(sum) != cursorSum(productID, place) {
		return nil, ErrCursor
	}
	return &engine.Row{CreatedAt: time.Unix(0, nanos).UTC(), EngineID: id}, nil
}
