package pool

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// nodeBackoff is why no volumes are created on a node for a while.
type nodeBackoff struct {
	n     int // successive failed attempts
	until time.Time
}

// each calls do for each of the entries, a few concurrently. A node on which it failed is
// not tried for a while, which doubles. It returns how many times do returned true.
func (p *Volumes) each(entries []*registry.PooledVolume, do func(*registry.PooledVolume) (bool, error)) (n int, err error) {
	var mu sync.Mutex
	failed, tried := map[string]error{}, map[string]bool{}
	var work errgroup.Group
	work.SetLimit(poolMakers)
	for _, v := range entries {
		tried[v.NodeID] = true
		mu.Lock()
		skip := failed[v.NodeID] != nil
		mu.Unlock()
		if skip {
			continue
		}
		work.Go(func() error {
			yes, err := do(v)
			mu.Lock()
			defer mu.Unlock()
			if yes {
				n++
			}
			if err != nil {
				failed[v.NodeID] = err
			}
			return nil
		})
	}
	_ = work.Wait()
	for node := range tried {
		if failed[node] == nil {
			delete(p.backoffs, node)
			continue
		}
		b := p.backoffs[node].n
		p.backoffs[node] = nodeBackoff{b + 1, time.Now().Add(engine.Backoff{Base: poolBackoff, Max: poolBackoffMax}.After(b))}
		err = errors.Join(err, fmt.Errorf("node %s: %w", node, failed[node]))
	}
	return n, err
}

// backingOff reports whether a node is not tried for now.
func (p *Volumes) backingOff(nodeID string, now time.Time) bool {
	return now.Before(p.backoffs[nodeID].until)
}
