package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// maxGroup is how many changes are committed in one transaction at most, so that none waits
// long for the others.
const maxGroup = 128

// group commits the changes of concurrent callers in one transaction of SQLite. Each commit
// waits for the disk (synchronous=FULL), so that sixty changes that commit one after the
// other on a disk that needs 75 ms for it would exceed the time limit of their calls.
type group struct {
	db    *sql.DB
	queue chan *change
	ended <-chan struct{}
	end   context.CancelFunc
	work  sync.WaitGroup
}

// change is a change that waits to be committed.
type change struct {
	do     func(ctx context.Context, tx *sql.Tx) error
	result chan error // has room for the result, because the caller may be gone
	// decided is set by whoever comes first: the caller that leaves, or the group that
	// carries the change out.
	decided atomic.Bool
}

var errGroupClosed = errors.New("the database is closed")

// newGroup commits changes to a database of one connection until it is closed.
func newGroup(db *sql.DB) *group {
	ctx, cancel := context.WithCancel(context.Background())
	g := &group{db: db, queue: make(chan *change), ended: ctx.Done(), end: cancel}
	g.work.Go(func() { g.run(ctx) })
	return g
}

// close waits for the change in progress. It does nothing on nil.
func (g *group) close() {
	if g == nil {
		return
	}
	g.end()
	g.work.Wait()
}

// commit returns when the change is on disk, or its error. A change whose ctx ends while it
// waits is not made. One that is being made is waited for beyond that, because a caller that
// is told of a failure makes it again; but a disk that hangs is not waited for. Then the
// change may still be made, and do must not write to variables that the caller reads after
// an error.
func (g *group) commit(ctx context.Context, do func(ctx context.Context, tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &change{do: do, result: make(chan error, 1)}
	select {
	case g.queue <- c:
	case <-g.ended:
		return errGroupClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.result:
		return err
	case <-ctx.Done():
	}
	if c.decided.CompareAndSwap(false, true) {
		return ctx.Err()
	}
	hangs := time.NewTimer(CallTimeout)
	defer hangs.Stop()
	select {
	case err := <-c.result:
		return err
	case <-hangs.C:
		return ctx.Err()
	}
}

// run commits the changes that wait, and meanwhile lets others gather.
func (g *group) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-g.queue:
			g.together(append([]*change{c}, g.waiting()...))
		}
	}
}

func (g *group) waiting() (list []*change) {
	for len(list) < maxGroup-1 {
		select {
		case c := <-g.queue:
			list = append(list, c)
		default:
			return list
		}
	}
	return list
}

// together runs the changes in one transaction. One that fails is undone alone, unless its
// error ended the transaction, as that of a full disk does.
func (g *group) together(list []*change) {
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	errs := make([]error, len(list))
	if err := g.transaction(ctx, list, errs); err != nil {
		for i := range errs {
			errs[i] = errors.Join(errs[i], err)
		}
	}
	for i, c := range list {
		c.result <- errs[i]
	}
}

// transaction returns an error if nothing was committed.
func (g *group) transaction(ctx context.Context, list []*change, errs []error) error {
	tx, err := g.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // no-op after Commit
	for i, c := range list {
		if !c.decided.CompareAndSwap(false, true) {
			continue // its caller has left
		}
		if _, err := tx.ExecContext(ctx, `SAVEPOINT alone`); err != nil {
			return err
		}
		if errs[i] = c.do(ctx, tx); errs[i] != nil {
			if _, err := tx.ExecContext(ctx, `ROLLBACK TO alone`); err != nil {
				return fmt.Errorf("%w: after %w", err, errs[i])
			}
		}
		if _, err := tx.ExecContext(ctx, `RELEASE alone`); err != nil {
			return err
		}
	}
	return tx.Commit()
}
