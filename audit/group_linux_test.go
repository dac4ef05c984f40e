package audit

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"sync"
	"testing"
)

// hold keeps SQLite's one writing connection until the returned function is called.
func hold(t *testing.T, l *Log) (release func()) {
	t.Helper()
	conn, err := l.db.writer.Conn(t.Context())
	must(t, err)
	release = sync.OnceFunc(func() { must(t, conn.Close()) })
	t.Cleanup(release)
	return release
}

func logSize(t *testing.T, l *Log) int64 {
	t.Helper()
	info, err := os.Stat(l.db.disk.walPath())
	must(t, err)
	return info.Size()
}

// Changes that wait for the disk are committed together: SQLite writes the pages that they
// share once, and not once per change.
func TestChangesAreCommittedTogether(t *testing.T) {
	const changes = 60
	l := open(t, sqliteURL(t))
	must(t, l.Ping(t.Context()))
	before := logSize(t, l)
	for range changes {
		_, err := l.Begin(t.Context(), Entry{Action: ActionStop})
		must(t, err)
	}
	alone := logSize(t, l) - before

	release := hold(t, l)
	var work, ready sync.WaitGroup
	errs := make([]error, changes)
	ready.Add(changes)
	for i := range changes {
		work.Go(func() {
			ready.Done()
			_, errs[i] = l.Begin(t.Context(), Entry{Action: ActionStop})
		})
	}
	ready.Wait()
	before = logSize(t, l)
	release()
	work.Wait()
	for _, err := range errs {
		must(t, err)
	}
	if together := logSize(t, l) - before; together > alone/2 {
		t.Errorf("%d concurrent changes wrote %d bytes, %d one after the other wrote %d", changes, together, changes, alone)
	}
	if got := list(t, l, Query{}); len(got) != 2*changes {
		t.Errorf("%d rows, want %d", len(got), 2*changes)
	}
}

// A change that fails, and one whose caller is gone, do not hurt their neighbours.
func TestChangeFailsAlone(t *testing.T) {
	l := open(t, sqliteURL(t))
	must(t, l.Ping(t.Context()))
	release := hold(t, l)
	gone, leave := context.WithCancel(t.Context())
	var work, left sync.WaitGroup
	var begun, unknown [20]error
	for i := range begun {
		work.Go(func() { _, begun[i] = l.Begin(t.Context(), Entry{Action: ActionStop}) })
		work.Go(func() { unknown[i] = l.Complete(t.Context(), int64(4711+i), Completion{}) })
	}
	for range begun {
		left.Go(func() {
			if _, err := l.Begin(gone, Entry{Action: ActionStop}); !errors.Is(err, context.Canceled) {
				t.Errorf("a caller that is gone got %v", err)
			}
		})
	}
	leave()
	left.Wait() // although the connection is still held
	release()
	work.Wait()
	for i := range begun {
		must(t, begun[i])
		wantErr(t, unknown[i], ErrNotFound)
	}
	if got := list(t, l, Query{}); len(got) != len(begun) {
		t.Errorf("%d rows, want %d", len(got), len(begun))
	}
}

// A change that is being made when its caller's time ends is not reported as failed: the
// caller would make it again.
func TestChangeInProgressIsAwaited(t *testing.T) {
	l := open(t, sqliteURL(t))
	must(t, l.Ping(t.Context()))
	ctx, leave := context.WithCancel(t.Context())
	err := l.db.transact(ctx, ordinary, func(of context.Context, tx *sql.Tx) error {
		leave()
		_, err := tx.ExecContext(of, `DELETE FROM audit_entries`)
		return err
	})
	must(t, err)
}

// After the end nobody waits for a commit.
func TestChangeAfterTheEnd(t *testing.T) {
	l := open(t, sqliteURL(t))
	must(t, l.Ping(t.Context()))
	l.db.group.close()
	if err := l.db.group.commit(t.Context(), nil); !errors.Is(err, errGroupClosed) {
		t.Errorf("got %v", err)
	}
}
