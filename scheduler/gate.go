package scheduler

import (
	"context"
	"sync"
)

// perProduct is how many engines of one product may be booting for callers of
// this replica at a time; more wait for their turn. It keeps a storm on one
// product from taking what the others need to boot.
const perProduct = 32

// gates lets so many in at a time, by product.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	slots chan struct{}
	users int // inside or waiting; the gate goes with the last one
}

// enter waits for a place; leave gives it back.
func (g *gates) enter(ctx context.Context, product string) (leave func(), err error) {
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]*gate{}
	}
	at := g.open[product]
	if at == nil {
		at = &gate{slots: make(chan struct{}, perProduct)}
		g.open[product] = at
	}
	at.users++
	g.mu.Unlock()
	done := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if at.users--; at.users == 0 {
			delete(g.open, product)
		}
	}
	select {
	case at.slots <- struct{}{}:
		return func() { <-at.slots; done() }, nil
	case <-ctx.Done():
		done()
		return nil, ctx.Err()
	}
}
