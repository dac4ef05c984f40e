package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// limitCheck is how often a call that waits for its turn looks whether waiting is still of
// use.
const limitCheck = time.Second

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

// Limiter bounds how many engines of a product boot concurrently.
type Limiter struct {
	mu   sync.Mutex
	open map[string]*productLimit
}

type productLimit struct {
	limit   int             // of those inside
	cut     time.Time       // when it was made smaller
	inside  int             // with the last one the product is forgotten
	waiting []chan struct{} // closed when it is their turn, in the order they came
}

// Enter waits for a place; leave gives it back. It returns the error of check, should
// that return one first: it is called now and then. ErrNoTurn.
func (g *Limiter) Enter(ctx context.Context, product string, check func() error) (leave func(), err error) {
	if err := check(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]*productLimit{}
	}
	at := g.open[product]
	if at == nil {
		at = &productLimit{limit: FirstBoots}
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
	tick := time.NewTicker(limitCheck)
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
func (at *productLimit) letIn() {
	for len(at.waiting) > 0 && at.inside < at.limit {
		close(at.waiting[0])
		at.waiting = at.waiting[1:]
		at.inside++
	}
}

// Booted adjusts a product's limit after a boot that began at a moment: grow adds one,
// shrink takes a quarter. A boot that began before the limit was last cut says nothing
// about the limit of now.
func (g *Limiter) Booted(product string, began time.Time, c congestion) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.open[product]
	switch {
	case at == nil || began.Before(at.cut):
	case c == shrink:
		at.limit, at.cut = max(at.limit*3/4, fewestBoots), time.Now()
	case c == grow && at.limit < mostBoots:
		at.limit++
		at.letIn()
	}
}

// congestion is what a boot says about its product's limit.
type congestion int

const (
	grow congestion = iota
	keep
	shrink
)

// CongestionOf judges a boot by the share that it took of the time that it may take: up to
// a sixth the limit may grow, beyond a third it has to shrink, because the boots that are
// under way then still have to end in time. A boot that took up to twice what engines of
// its kind need (0: not known) is no sign of congestion.
func CongestionOf(took, mayTake, expected time.Duration) congestion {
	switch {
	case took >= mayTake:
		return shrink
	case took <= max(mayTake/6, 2*expected):
		return grow
	case took <= mayTake/3:
		return keep
	}
	return shrink
}
