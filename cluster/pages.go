package cluster

import (
	"context"
	"math"
	"time"

	"github.com/hashicorp/nomad/api"
)

// pageSize is how many of a list are asked for at a time, so that neither side
// holds a large fleet's as one answer.
const pageSize = 500

// throttleBy is how many times as long as a page took is waited before the next, of a
// list that nobody waits for: it keeps Nomad's servers and this process busy for a
// fifth of the time at most, so that calls that come meanwhile hardly notice.
const throttleBy = 4

// Throttle slows down the reading of a list of a whole fleet, until it is closed.
type Throttle <-chan struct{}

// Unthrottled is for lists that somebody waits for.
var Unthrottled = func() Throttle {
	closed := make(chan struct{})
	close(closed)
	return closed
}()

// pages reads a list a page at a time, each within callTimeout, and returns up to
// which index all of them are complete. What is there all the while is on one of
// them, and what changes meanwhile may be on two.
func (c *Cluster) pages(ctx context.Context, throttle Throttle, q *api.QueryOptions, read func(*api.QueryOptions) (*api.QueryMeta, error)) (index uint64, err error) {
	index = math.MaxUint64
	q.PerPage = c.pageSize
	for {
		began := time.Now()
		meta, err := page(ctx, q, read)
		if err != nil {
			return 0, classify(err)
		}
		index = min(index, meta.LastIndex)
		if meta.NextToken == "" {
			return index, nil
		}
		q.NextToken = meta.NextToken
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-throttle:
		case <-time.After(throttleBy * time.Since(began)):
		}
	}
}

func page(ctx context.Context, q *api.QueryOptions, read func(*api.QueryOptions) (*api.QueryMeta, error)) (*api.QueryMeta, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return read(q.WithContext(ctx))
}
