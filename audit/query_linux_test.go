package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestEntries(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l := open(t, url)
		at := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Minute)
		for i, e := range []Entry{
			{ProductID: "p1", UserID: "u1", Action: ActionProvision}, {ProductID: "p1", UserID: "u2", Action: ActionProvision},
			{ProductID: "p2", UserID: "u1", Action: ActionDestroy}, {ProductID: "p1", UserID: "u1", Action: ActionStop},
		} {
			e.Timestamp = at.Add(time.Duration(i) * time.Second)
			must(t, l.Record(t.Context(), e))
		}
		for name, c := range map[string]struct {
			q    Query
			want string
		}{
			"All":       {Query{}, "stop destroy provision provision"},
			"Product":   {Query{ProductID: "p1"}, "stop provision provision"},
			"User":      {Query{ProductID: "p1", UserID: "u1"}, "stop provision"},
			"Action":    {Query{Action: ActionProvision}, "provision provision"},
			"Since":     {Query{Since: at.Add(2 * time.Second)}, "stop destroy"},
			"SinceLate": {Query{Since: at.Add(2*time.Second + time.Nanosecond)}, "stop"},
			"Until":     {Query{Until: at.Add(2 * time.Second)}, "provision provision"},
			"Both":      {Query{Since: at.Add(time.Second), Until: at.Add(3 * time.Second)}, "destroy provision"},
			"None":      {Query{ProductID: "p3"}, ""},
		} {
			var got []string
			for _, e := range list(t, l, c.q) {
				got = append(got, e.Action)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s: got %v, want %s", name, got, c.want)
			}
		}
		for _, bad := range []string{"x", "%", strings.Repeat("A", 28)} {
			_, err := l.Entries(t.Context(), Query{Cursor: bad})
			wantErr(t, err, ErrCursor)
		}
	})
}

// Pages are complete and without duplicates, even with equal time stamps and concurrent
// writes.
func TestPages(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l := open(t, url)
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			product := fmt.Sprint("product-", n)
			at := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
			record := func(i, second int) {
				if err := l.Record(context.Background(), Entry{ProductID: product, UserID: fmt.Sprint(i), Action: ActionStop, Timestamp: at.Add(time.Duration(second) * time.Second)}); err != nil {
					t.Fatal(err)
				}
			}
			rows := rapid.IntRange(0, 25).Draw(t, "rows")
			for i := range rows {
				record(i, rapid.IntRange(0, 3).Draw(t, "second"))
			}
			q := Query{ProductID: product, Limit: rapid.IntRange(1, 7).Draw(t, "limit")}
			seen := map[string]bool{}
			for {
				page, err := l.Entries(context.Background(), q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page.Entries) > q.Limit {
					t.Fatalf("a page of %d", len(page.Entries))
				}
				if !slices.IsSortedFunc(page.Entries, func(a, b Entry) int { return b.Timestamp.Compare(a.Timestamp) }) {
					t.Fatal("not newest first")
				}
				for _, e := range page.Entries {
					if seen[e.UserID] {
						t.Fatalf("row %s twice", e.UserID)
					}
					seen[e.UserID] = true
				}
				if page.NextCursor == "" {
					break
				}
				q.Cursor = page.NextCursor
				record(1000+len(seen), 60) // newer than all: not on later pages
			}
			for i := range rows {
				if !seen[fmt.Sprint(i)] {
					t.Fatalf("row %d of %d is missing", i, rows)
				}
			}
		})
	})
}

func TestNumbersAndRetention(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l := open(t, url)
		old := time.Now().Add(-100 * 24 * time.Hour)
		record := func(e Entry) { t.Helper(); must(t, l.Record(t.Context(), e)) }
		for range 3 {
			record(Entry{ProductID: "p", Action: ActionProvision, Timestamp: old})
		}
		record(Entry{ProductID: "p", Action: ActionProvision, Metadata: map[string]any{MetadataBootMS: 100}})
		record(Entry{ProductID: "p", Action: ActionStart, Metadata: map[string]any{MetadataBootMS: 300}})
		record(Entry{ProductID: "p", Action: ActionProvision, Outcome: "BOOT_TIMEOUT"})
		record(Entry{ProductID: "p", EngineID: "e", Action: ActionProvision, Timestamp: time.Now().Add(-2 * time.Hour)})
		record(Entry{ProductID: "p", Action: ActionHealthFailed})
		record(Entry{ProductID: "p", Action: ActionAutoRestartSuccess, Metadata: map[string]any{MetadataBootMS: 200}})
		record(Entry{ProductID: "p", EngineID: "e", Action: ActionDestroy})
		record(Entry{ProductID: "other", Action: ActionDestroy})
		want := Numbers{Provisions1h: 1, Crashes1h: 1, Restarts1h: 1, AvgBootMS: 200, TotalProvisions: 5, TotalDestroys: 1}
		check := func() {
			t.Helper()
			if got, err := l.Numbers(t.Context(), "p"); err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		}
		check()
		if n, err := l.expire(t.Context()); err != nil || n != 3 {
			t.Errorf("%d rows deleted, %v, want 3", n, err)
		}
		if left := list(t, l, Query{Until: time.Now().Add(-90 * 24 * time.Hour)}); len(left) > 0 {
			t.Errorf("%d old rows are left", len(left))
		}
		check() // the totals are kept
		if got, err := l.Numbers(t.Context(), "nobody"); err != nil || got != (Numbers{}) {
			t.Errorf("of a product without rows: %+v, %v", got, err)
		}
	})
}

// The lists of products use an index, without a scan or a sort.
func TestIndexes(t *testing.T) {
	for name, c := range map[string]Query{
		"product": {ProductID: "p"}, "user": {ProductID: "p", UserID: "u"}, "action": {ProductID: "p", Action: ActionStop}, "all": {},
	} {
		t.Run("sqlite/"+name, func(t *testing.T) {
			l := open(t, sqliteURL(t))
			query, args, err := l.selection(c)
			must(t, err)
			if plan := explain(t, l, "EXPLAIN QUERY PLAN "+query, args); strings.Contains(plan, "TEMP B-TREE") || !strings.Contains(plan, "USING INDEX") {
				t.Errorf("plan: %s", plan)
			}
		})
		t.Run("postgres/"+name, func(t *testing.T) {
			l := open(t, emptyDatabase(t, postgres(t)))
			// So many rows that a scan would be slower.
			_, err := l.db.writer.ExecContext(t.Context(), `INSERT INTO audit_entries
				(timestamp, product_id, user_id, engine_id, action, actor, request_id, outcome, metadata)
				SELECT now() - n * interval '1 second', 'p' || n % 50, 'u' || n % 1000, '', 'stop', 'p', '', 'ok', '{}' FROM generate_series(1, 20000) n`)
			must(t, err)
			_, err = l.db.writer.ExecContext(t.Context(), "ANALYZE audit_entries")
			must(t, err)
			query, args, err := l.selection(c)
			must(t, err)
			if plan := explain(t, l, "EXPLAIN "+query, args); strings.Contains(plan, "Seq Scan") || !strings.Contains(plan, "Index Scan") {
				t.Errorf("plan: %s", plan)
			}
		})
	}
}

func explain(t *testing.T, l *Log, query string, args []any) string {
	t.Helper()
	rows, err := l.db.reader.QueryContext(t.Context(), query, args...)
	must(t, err)
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	must(t, err)
	var plan []string
	for rows.Next() {
		cells := make([]any, len(columns))
		for i := range cells {
			cells[i] = new(any)
		}
		must(t, rows.Scan(cells...))
		plan = append(plan, fmt.Sprint(*cells[len(cells)-1].(*any)))
	}
	must(t, rows.Err())
	return strings.Join(plan, "\n")
}

// Written rows can be read at once, even if a caller cancelled an earlier read: SQLite's
// driver once left such a connection in an old snapshot.
func TestReadsThatAreCutShort(t *testing.T) {
	l := open(t, sqliteURL(t))
	done := make(chan struct{})
	var hasty sync.WaitGroup
	for range 6 {
		hasty.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					ctx, hangUp := context.WithTimeout(t.Context(), time.Duration(rand.IntN(1000))*time.Microsecond)
					_, _ = l.Entries(ctx, Query{ProductID: "p"})
					hangUp()
				}
			}
		})
	}
	for i := range 200 {
		must(t, l.Record(t.Context(), Entry{Timestamp: time.Now(), ProductID: "p", Action: ActionStop}))
		if got := len(list(t, l, Query{ProductID: "p", Limit: 1000})); got != i+1 {
			t.Errorf("%d entries are listed, %d were written", got, i+1)
			break
		}
	}
	close(done)
	hasty.Wait()
}
