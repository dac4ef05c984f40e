package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// gateCheck is how often who waits at a gate looks whether waiting is still of use.
const gateCheck = time.Second

// How many engines of one product may be booting for callers of this replica at a
// time; more wait for their turn. It keeps a storm on one product from taking what the
// others need to boot, and the nodes from so many that none is done in time: a product
// begins with FirstBoots, and what its boots take says whether it may have more.
const (
	fewestBoots = 4
	FirstBoots  = 16
	mostBoots   = 32
)

// ErrNoTurn is the error of a caller whose time was over before its turn came.
var ErrNoTurn = errors.New("too many engines of this product are booting")

// Gates let so many in at a time, by product.
type Gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	limit   int             // of those inside
	cut     time.Time       // when it was made smaller
	inside  int             // the gate goes with the last one
	waiting []chan struct{} // closed when it is their turn, in the order they came
}

// Enter waits for a place; leave gives it back. It returns the error of check, should
// that return one first: it is called now and then. ErrNoTurn.
func (g *Gates) Enter(ctx context.Context, product string, check func() error) (leave func(), err error) {
	if err := check(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]*gate{}
	}
	at := g.open[product]
	if at == nil {
		at = &gate{limit: FirstBoots}
		g.open[product] = at
	}
	turn := make(chan struct{})
	at.waiting = append(at.waiting, turn)
	at.letIn()
	g.mu.Unlock()
	leave = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		at.inside--
		at.letIn()
		if at.inside == 0 {
			delete(g.open, product)
		}
	}
	tick := time.NewTicker(gateCheck)
	defer tick.Stop()
	for err == nil {
		select {
		case <-turn:
			return leave, nil
		case <-tick.C:
			err = check()
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrNoTurn, ctx.Err())
		}
	}
	g.mu.Lock()
	i := slices.Index(at.waiting, turn)
	if i >= 0 {
		at.waiting = slices.Delete(at.waiting, i, i+1)
	}
	g.mu.Unlock()
	if i < 0 { // it was let in meanwhile
		leave()
	}
	return nil, err
}

// letIn lets those in whose turn it is.
func (at *gate) letIn() {
	for len(at.waiting) > 0 && at.inside < at.limit {
		close(at.waiting[0])
		at.waiting = at.waiting[1:]
		at.inside++
	}
}

// Booted says how crowded it was for a boot of a product's engine that began at a
// moment: after a quick one one more may boot at a time, after a late one a quarter
// fewer. What began before the limit was cut says nothing about it.
func (g *Gates) Booted(product string, began time.Time, c crowd) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.open[product]
	switch {
	case at == nil || began.Before(at.cut):
	case c == tooMany:
		at.limit, at.cut = max(at.limit*3/4, fewestBoots), time.Now()
	case c == room && at.limit < mostBoots:
		at.limit++
		at.letIn()
	}
}

// crowd is whether engines boot beside each other in time.
type crowd int

const (
	room crowd = iota
	enough
	tooMany
)

// CrowdOf goes by what a boot took, of what it may take: up to a sixth of that there
// is room for more at a time, beyond a third there is not for so many: those that are
// under way when it is noticed still have to be done in time. Up to twice what
// engines of its kind need (0: not known) it is their nature, not the crowd.
func CrowdOf(took, mayTake, expected time.Duration) crowd {
	switch {
	case took >= mayTake:
		return tooMany
	case took <= max(mayTake/6, 2*expected):
		return room
	case took <= mayTake/3:
		return enough
	}
	return tooMany
}
