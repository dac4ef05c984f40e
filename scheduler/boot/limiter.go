package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// limitCheck is the interval at which a waiting call checks whether waiting still makes
// sense.
const limitCheck = time.Second

// The limits of how many engines of one product may boot concurrently for callers of this
// replica; further calls wait for their turn. They prevent a burst of one product from
// using the capacity that others need, and so many concurrent boots that none ends in time.
// A product begins with FirstBoots, and the duration of its boots changes its limit.
const (
	fewestBoots = 4
	FirstBoots  = 16
	mostBoots   = 32
)

// ErrNoTurn means that the caller's time was over before its turn.
var ErrNoTurn = errors.New("too many engines of this product are booting")

// Limiter limits how many engines of a product boot concurrently.
type Limiter struct {
	mu   sync.Mutex
	open map[string]*productLimit
}

type productLimit struct {
	limit   int             // maximum of inside
	cut     time.Time       // when it was last reduced
	inside  int             // at 0 the product is forgotten
	waiting []chan struct{} // in order of arrival; closed when it is their turn
}

// Enter waits for a place; leave frees it. It calls check repeatedly, and returns its error
// if there is one. ErrNoTurn.
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
	if i < 0 { // it got a place meanwhile
		leave()
	}
	return nil, err
}

// letIn gives places to the calls whose turn it is.
func (at *productLimit) letIn() {
	for len(at.waiting) > 0 && at.inside < at.limit {
		close(at.waiting[0])
		at.waiting = at.waiting[1:]
		at.inside++
	}
}

// Booted adjusts a product's limit after a boot that began at a time: grow adds one, shrink
// subtracts a quarter. A boot that began before the limit was last reduced shows nothing
// about the current limit.
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

// congestion is what a boot shows about its product's limit.
type congestion int

const (
	grow congestion = iota
	keep
	shrink
)

// CongestionOf judges a boot by the fraction of its time limit that it took. Up to a sixth,
// the concurrency limit may grow; above a third it must shrink, because the boots in
// progress must still end in time. A boot that took up to twice the usual time of its kind
// (0: unknown) is no sign of congestion.
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
