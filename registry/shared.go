package registry

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/internal/link"
)

const (
	// maxSharedKeys bounds one shared transaction; 64 reads take 0.43 to 0.72 ms
	// (DESIGN section 4), and Consul takes at most 128 operations.
	maxSharedKeys = 64
	// maxFlights is how many shared transactions are under way at a time: with
	// one alone, each request would wait for half of another's on average.
	maxFlights = 2
	// flightEvery is how long after another one, if that is under way, a
	// transaction begins at least. At 5,000 admits per second it makes two or
	// three reads of what would be a transaction each (measured: an eighth less CPU
	// for all, 0.2 ms more at the median).
	flightEvery = 500 * time.Microsecond
	// lateFlight is what a transaction has at least, whose first caller has waited for
	// it for most of callTimeout.
	lateFlight = time.Second
)

// Lookup is what one product call needs to know, read in one transaction that
// began after the call arrived: that the platform key still belongs to the
// product, the product, and the user's engine (nil when there is none).
// The product is shared by all who look it up, and not to be changed. ErrNotFound:
// the key or the product is gone.
func (s *Store) Lookup(ctx context.Context, keyHash, productID, userID string) (*engine.Product, *engine.Row, error) {
	keyAt, productAt, rowAt := s.platformKey(keyHash), s.productKey(productID), s.engineKey(productID, userID)
	found, err := s.shared.read(ctx, productID, keyAt, productAt, rowAt)
	if err != nil {
		return nil, nil, err
	}
	owner, err := found[keyAt].value()
	if err != nil {
		return nil, nil, unavailable(err)
	}
	product, exists := found[productAt]
	if !exists || string(owner) != productID {
		return nil, nil, fmt.Errorf("%w: platform key", ErrNotFound)
	}
	p, err := s.products.of(product)
	if err != nil {
		return nil, nil, err
	}
	if !p.Accepts(keyHash, time.Now()) {
		return nil, nil, fmt.Errorf("%w: platform key", ErrNotFound)
	}
	row, exists := found[rowAt]
	if !exists {
		return p, nil, nil
	}
	e, err := s.row(row)
	if err != nil {
		return nil, nil, err
	}
	return p, e.Clone(), nil
}

// Engine reads one row, in its product's turn: many callers that wait for the end
// of one operation ask again and again. ErrNotFound: the user has none.
func (s *Store) Engine(ctx context.Context, productID, userID string) (*engine.Row, error) {
	key := s.engineKey(productID, userID)
	found, err := s.shared.read(ctx, productID, key)
	if err != nil {
		return nil, err
	}
	row, exists := found[key]
	if !exists {
		return nil, fmt.Errorf("%w: engine of %q", ErrNotFound, userID)
	}
	e, err := s.row(row)
	if err != nil {
		return nil, err
	}
	return e.Clone(), nil
}

// sharedReads answers reads that wait at the same time by one transaction. A
// read is answered by a transaction that began after it arrived, so it is as
// fresh as one of its own. Tenants take turns: however many reads one has
// waiting, each other is in the next transaction.
type sharedReads struct {
	store *Store

	mu      sync.Mutex
	flights int
	began   time.Time                // when the newest transaction began
	waiting map[string][]*sharedRead // by tenant
	turns   []string                 // tenants that wait, in the order of their turns
}

// sharedRead is one caller's read. Its caller runs the transaction that it is
// told to lead; there is no goroutine of its own to look after.
type sharedRead struct {
	tenant string
	keys   []string
	until  time.Time // when it has waited for callTimeout

	lead  chan struct{} // closed: run the next transaction, with this read in it
	done  chan struct{} // closed: found and err are set
	found map[string]stored
	err   error
}

// read returns what is stored at keys; a key that is not there is not in it. It takes
// callTimeout and lateFlight at most, however many wait.
func (r *sharedReads) read(ctx context.Context, tenant string, keys ...string) (map[string]stored, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c := &sharedRead{tenant: tenant, keys: keys, until: time.Now().Add(callTimeout), lead: make(chan struct{}), done: make(chan struct{})}
	r.mu.Lock()
	if r.flights < maxFlights {
		r.flights++
		close(c.lead)
	} else {
		r.enqueue(c)
	}
	r.mu.Unlock()
	select {
	case <-c.done:
	case <-c.lead:
		r.fly(ctx, c)
	case <-ctx.Done():
		r.leave(c)
		return nil, unavailable(ctx.Err())
	}
	return c.found, c.err
}

// fly runs one transaction with c in it and hands over to the next caller.
//
// First it waits for its time beside another one, and lets run who can: where the
// processors have more to do than they can, requests are waiting to come this far,
// and one transaction for many costs little more than one for few. Where they are
// idle, this takes no time.
func (r *sharedReads) fly(ctx context.Context, c *sharedRead) {
	time.Sleep(r.wait())
	runtime.Gosched()
	r.mu.Lock()
	r.began = time.Now()
	batch := r.take(c)
	r.mu.Unlock()
	var keys []string
	for _, c := range batch {
		for _, key := range c.keys {
			if !slices.Contains(keys, key) { // they are few
				keys = append(keys, key)
			}
		}
	}
	// Others wait for this too: it does not end with its caller's request.
	shared, cancel := context.WithTimeout(link.FailFast(context.WithoutCancel(ctx)), max(time.Until(c.until), lateFlight))
	answers, err := r.store.readKeys(shared, keys)
	cancel()
	if err == nil && len(answers) != len(keys) {
		err = fmt.Errorf("%w: %d answers to %d reads", ErrUnavailable, len(answers), len(keys))
	}
	found := make(map[string]stored, len(answers))
	for _, v := range answers {
		if v.index > 0 {
			found[v.key] = v
		}
	}
	for _, c := range batch {
		c.found, c.err = found, err
		close(c.done)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handOver()
}

// wait is how long until a transaction may begin beside another.
func (r *sharedReads) wait() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flights < 2 {
		return 0
	}
	return flightEvery - time.Since(r.began)
}

// handOver lets the next waiting caller run a transaction. The lock is held.
func (r *sharedReads) handOver() {
	if len(r.turns) == 0 {
		r.flights--
		return
	}
	next := r.waiting[r.turns[0]][0]
	r.remove(next)
	close(next.lead)
}

// enqueue adds a read to its tenant's. The lock is held.
func (r *sharedReads) enqueue(c *sharedRead) {
	if r.waiting == nil {
		r.waiting = map[string][]*sharedRead{}
	}
	if len(r.waiting[c.tenant]) == 0 {
		r.turns = append(r.turns, c.tenant)
	}
	r.waiting[c.tenant] = append(r.waiting[c.tenant], c)
}

// take removes the reads that go with c's: one of each tenant in turn, and
// around again, while they fit. The lock is held.
func (r *sharedReads) take(c *sharedRead) []*sharedRead {
	batch, room := []*sharedRead{c}, maxSharedKeys-len(c.keys)
	for len(r.turns) > 0 {
		next := r.waiting[r.turns[0]][0]
		if room -= len(next.keys); room < 0 {
			break
		}
		r.remove(next)
		batch = append(batch, next)
	}
	return batch
}

// remove takes a waiting read out; its tenant's turn comes last then. The lock
// is held.
func (r *sharedReads) remove(c *sharedRead) {
	queue := r.waiting[c.tenant]
	i := slices.Index(queue, c)
	if i < 0 {
		return
	}
	r.waiting[c.tenant] = slices.Delete(queue, i, i+1)
	at := slices.Index(r.turns, c.tenant)
	r.turns = slices.Delete(r.turns, at, at+1)
	if len(r.waiting[c.tenant]) > 0 {
		r.turns = append(r.turns, c.tenant)
	} else {
		delete(r.waiting, c.tenant)
	}
}

// leave gives up a read whose caller has gone. Was it to lead, another does.
func (r *sharedReads) leave(c *sharedRead) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-c.lead:
		r.handOver()
	default:
		r.remove(c) // if no transaction has it yet
	}
}
