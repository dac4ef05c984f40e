package main

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/registry"
)

const (
	// rowsAtScale is how many engines a product has while its lists are measured.
	rowsAtScale = 5000
	// timesListed is how often each list is asked for.
	timesListed = 200
)

// listsResult is what lists took with many rows, in milliseconds, and the
// service's resident memory then, in MiB.
type listsResult struct {
	page, filtered, status []float64
	running                float64
}

// lists writes rows of engines that have no jobs, and measures the lists that
// the service makes of them.
func (b *bench) lists(ctx context.Context) error {
	res, err := b.readLists(ctx)
	if err == nil {
		b.rep.addLists(res)
	}
	return err
}

func (b *bench) readLists(ctx context.Context) (res listsResult, err error) {
	s, err := b.rig.start(ctx, b.rig.vars("lists", rawExec, 0, nil))
	if err != nil {
		return res, err
	}
	c := s.Client
	if err := writeRows(ctx, s.store, s.productID, rowsAtScale); err != nil {
		return res, fmt.Errorf("write the rows: %w", err)
	}
	if err := listed(ctx, c, rowsAtScale); err != nil {
		return res, err
	}
	if res.page, err = listings(func() error { return anyPage(ctx, c, rowsAtScale) }); err != nil {
		return res, err
	}
	late := client.EngineFilter{Limit: 100, Status: client.Provisioning, Offset: 4000}
	if res.filtered, err = listings(func() error { _, err := c.Engines(ctx, late); return err }); err != nil {
		return res, err
	}
	if res.status, err = listings(func() error { _, err := c.Status(ctx); return err }); err != nil {
		return res, err
	}
	res.running, err = s.rssMiB()
	return res, err
}

// listings makes a call timesListed times and returns what each took, in milliseconds.
func listings(call func() error) (took []float64, err error) {
	for range timesListed {
		began := time.Now()
		if err := call(); err != nil {
			return nil, err
		}
		took = append(took, millis(time.Since(began)))
	}
	return took, nil
}

// anyPage asks for a page from anywhere in a list of so many engines.
func anyPage(ctx context.Context, c *client.Client, engines int) error {
	_, err := c.Engines(ctx, client.EngineFilter{Limit: 100, Offset: mrand.IntN(max(1, engines-100))})
	return err
}

// listed waits until so many engines are listed.
func listed(ctx context.Context, c *client.Client, n int) error {
	return until(ctx, func() error {
		list, err := c.Engines(ctx, client.EngineFilter{Limit: 1})
		if err != nil {
			return err
		}
		if list.Total != n {
			return fmt.Errorf("%d of %d are listed", list.Total, n)
		}
		return nil
	})
}

// writeRows writes n rows as a replica does that never began to boot them.
func writeRows(ctx context.Context, store *registry.Store, productID string, n int) error {
	replica := store.Join(hclog.NewNullLogger())
	joined, leave := context.WithCancel(ctx)
	left := make(chan struct{})
	go func() { defer close(left); replica.Run(joined) }()
	defer func() { leave(); <-left }()
	select {
	case <-replica.Joined():
	case <-ctx.Done():
		return ctx.Err()
	}
	product, err := store.Tenant(ctx, productID)
	if err != nil {
		return err
	}
	for i := range n {
		row := &registry.Engine{
			EngineID: strings.ToLower(rand.Text()), ProductID: productID, ProductSlug: product.Slug, UserID: fmt.Sprint("user-", i),
			State: registry.Provisioning, Desired: registry.Running, Image: "reference-engine", Resources: resources, CreatedAt: time.Now().UTC(),
		}
		if err := store.Refollowing(ctx, func() error { return store.Claim(ctx, product.Product, row, nil) }); err != nil {
			return err
		}
	}
	return nil
}
