package cluster

import (
	"context"
	"math"
	"time"

	"github.com/hashicorp/nomad/api"
)

// pageSize is the number of items per request of a list, so that neither side holds the
// list of a large fleet in one response.
const pageSize = 500

// throttleBy is the pause after each page of a background list, as a multiple of the time
// that the page took. Such a list keeps Nomad's servers and this process busy for at most a
// fifth of the time, so that other calls are hardly affected.
const throttleBy = 4

// Throttle slows down the reading of a long list until the channel is closed.
type Throttle <-chan struct{}

// Unthrottled is for lists that a caller waits for.
var Unthrottled = func() Throttle {
	closed := make(chan struct{})
	close(closed)
	return closed
}()

// pages reads a list page by page, each within callTimeout. It returns the index up to
// which the list is complete. An item that exists the whole time is on one of the pages; an
// item that changes meanwhile may be on two.
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
