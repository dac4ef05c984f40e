package audit

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"
)

const (
	// doubtEvery is how often rows in doubt are looked for.
	doubtEvery = 3 * time.Second
	// doubtFor is how long a row may still appear after the database can be
	// reached again: what was sent into a cut connection arrives late.
	doubtFor = 2 * time.Minute
	// maxDoubts bounds the rows in doubt that are remembered.
	maxDoubts = 10_000
)

// OutcomeUnavailable is the outcome of a change that was refused because its row
// could not be begun for sure: the error code that its caller gets.
const OutcomeUnavailable = "BACKEND_UNAVAILABLE"

// doubt is a row whose INSERT was not answered. Its change is not made, so the
// row, should there be one, must not say "interrupted" indefinitely. An id that the caller
// makes would not spare this: an insert that is sent again until the call's time is over
// can still arrive after the caller was told 503.
type doubt struct {
	entry Entry
	// missed is when the database was first asked for the row and did not have
	// it; zero: it was not reached yet.
	missed time.Time
	// next is when it is asked again: the later, the longer it was missed.
	next time.Time
}

type doubts struct {
	mu   sync.Mutex
	list []doubt
}

// add remembers a row in doubt; when there are too many the oldest is forgotten.
func (d *doubts) add(list ...doubt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, list...)
	d.list = d.list[max(0, len(d.list)-maxDoubts):]
}

func (d *doubts) take() []doubt {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.list
	d.list = nil
	return list
}

// settleDoubts completes the rows in doubt until ctx ends, and then once more.
func (l *Log) settleDoubts(ctx context.Context) {
	for pause(ctx, doubtEvery) {
		l.settle(ctx)
	}
	l.settle(context.WithoutCancel(ctx))
}

// settle completes the rows in doubt that are there. What is not there is looked
// for again, for a while.
func (l *Log) settle(ctx context.Context) {
	list := l.doubts.take()
	for i, d := range list {
		if time.Now().Before(d.next) {
			l.doubts.add(d)
			continue
		}
		found, err := l.refuse(ctx, d.entry)
		if err != nil {
			l.doubts.add(list[i:]...)
			return
		}
		if d.missed.IsZero() {
			d.missed = time.Now()
		}
		missing := time.Since(d.missed)
		d.next = time.Now().Add(missing)
		if !found && missing < doubtFor {
			l.doubts.add(d)
		}
	}
}

// refuse completes the row of a change that was not made, and says whether there
// is one. The request, its action and its time to the microsecond name it.
func (l *Log) refuse(ctx context.Context, e Entry) (found bool, err error) {
	var id int64
	at := l.db.time(stampOf(e.Timestamp))
	err = l.db.call(ctx, func(ctx context.Context) error {
		return l.db.reader.QueryRowContext(ctx, `SELECT id FROM audit_entries
			WHERE timestamp = $1 AND request_id = $2 AND action = $3 AND user_id = $4 AND product_id = $5`,
			at, clean(e.RequestID), clean(e.Action), clean(e.UserID), clean(e.ProductID)).Scan(&id)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, l.Complete(ctx, id, Completion{Outcome: OutcomeUnavailable, Duration: time.Since(e.Timestamp)})
}
