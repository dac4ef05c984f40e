package cluster

import (
	"context"
	"math"

	"github.com/hashicorp/nomad/api"
)

// pageSize is how many of a list are asked for at a time, so that neither side
// holds a large fleet's as one answer.
const pageSize = 500

// pages reads a list a page at a time, each within callTimeout, and returns up to
// which index all of them are complete. What is there all the while is on one of
// them, and what changes meanwhile may be on two.
func (c *Cluster) pages(ctx context.Context, q *api.QueryOptions, read func(*api.QueryOptions) (*api.QueryMeta, error)) (index uint64, err error) {
	index = math.MaxUint64
	q.PerPage = c.pageSize
	for {
		meta, err := page(ctx, q, read)
		if err != nil {
			return 0, classify(err)
		}
		index = min(index, meta.LastIndex)
		if meta.NextToken == "" {
			return index, nil
		}
		q.NextToken = meta.NextToken
	}
}

func page(ctx context.Context, q *api.QueryOptions, read func(*api.QueryOptions) (*api.QueryMeta, error)) (*api.QueryMeta, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return read(q.WithContext(ctx))
}
