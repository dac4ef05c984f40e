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

// ErrCursor says that no page gave this cursor.
var ErrCursor = errors.New("registry: not a cursor of this list")

// errForeignRow: a row under the name of another user.
var errForeignRow = errors.New("registry: the row says that it belongs to somebody else")

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

// PageQuery asks for a part of a product's engines.
type PageQuery struct {
	ProductID string
	State     engine.State // empty: all
	Limit     int
	Offset    int    // how many to leave out
	Cursor    string // of the page before; empty: from the start
}

// Page returns rows of a product, oldest first, how many match in all, and the
// cursor of the next page, empty on the last. ErrCursor.
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

// Counts is how many engines of a product are in each of the six states; of all
// products with the product "".
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

// Of are all rows of a product, oldest first.
func (m *Mirror) Of(productID string) (rows []*engine.Row) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, t := range m.of(productID) {
		rows = append(rows, t.rows...)
	}
	return rows
}

// In are the rows of a product in a state, oldest first; of all products, one
// after the other, with the product "".
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

// of are the rows of one product or, with "", of each: warm engines are nobody's.
// The lock is held.
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

// cursorAfter names the place behind a row of a product's list, whether or not
// that row is still there. Its checksum is no secret: it tells a cursor of this
// list from those of others, and from what somebody made up or cut.
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
