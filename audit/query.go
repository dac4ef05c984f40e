package audit

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

const (
	// defaultLimit and maxLimit of a page, in rows (docs/openapi.yaml).
	defaultLimit = 100
	maxLimit     = 1000
)

// Query says which rows [Log.Entries] lists; what is zero does not limit them.
type Query struct {
	ProductID string
	UserID    string
	Action    string
	Since     time.Time // rows that began then or later
	Until     time.Time // rows that began before
	Limit     int       // of a page: 1 to 1000, 0 means 100
	Cursor    string    // NextCursor of the page before, asked with the same filters
}

// Page is a part of the log, newest first.
type Page struct {
	Entries []Entry
	// NextCursor continues after the last entry; empty on the last page. What is
	// written meanwhile neither repeats nor hides a row of the pages to come.
	NextCursor string
}

// Entries lists rows, newest first; rows of one time stamp by falling id.
// [ErrCursor]: the cursor is not ours; [ErrUnavailable].
func (l *Log) Entries(ctx context.Context, q Query) (Page, error) {
	if q.Limit <= 0 {
		q.Limit = defaultLimit
	}
	q.Limit = min(q.Limit, maxLimit)
	query, args, err := l.selection(q)
	if err != nil {
		return Page{}, err
	}
	var page Page
	err = l.db.call(ctx, func(ctx context.Context) error {
		rows, err := l.db.reader.QueryContext(ctx, query, args...)
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			e, err := scanEntry(rows)
			if err != nil {
				return err
			}
			page.Entries = append(page.Entries, e)
		}
		return rows.Err()
	})
	if err != nil {
		return Page{}, err
	}
	if len(page.Entries) > q.Limit {
		page.Entries = page.Entries[:q.Limit]
		last := page.Entries[q.Limit-1]
		page.NextCursor = position{last.Timestamp, last.ID}.cursor(q.ProductID)
	}
	return page, nil
}

// selection makes the SQL of a query: only the conditions that it has, so that
// each combination is planned for its own index. It asks for one row more than
// the page has, to know whether there is another.
func (l *Log) selection(q Query) (query string, args []any, err error) {
	var conditions []string
	where := func(condition string, values ...any) {
		marks := make([]any, len(values))
		for i, v := range values {
			args = append(args, v)
			marks[i] = len(args)
		}
		conditions = append(conditions, fmt.Sprintf(condition, marks...))
	}
	if q.ProductID != "" {
		where("product_id = $%d", clean(q.ProductID))
	}
	if q.UserID != "" {
		where("user_id = $%d", clean(q.UserID))
	}
	if q.Action != "" {
		where("action = $%d", clean(q.Action))
	}
	if !q.Since.IsZero() {
		where("timestamp >= $%d", l.db.time(ceil(q.Since)))
	}
	if !q.Until.IsZero() {
		where("timestamp < $%d", l.db.time(ceil(q.Until)))
	}
	if q.Cursor != "" {
		after, err := parseCursor(q.ProductID, q.Cursor)
		if err != nil {
			return "", nil, err
		}
		where("(timestamp, id) < ($%d, $%d)", l.db.time(after.timestamp), after.id)
	}
	query = `SELECT id, timestamp, product_id, user_id, engine_id, action, actor, request_id, outcome, metadata, duration_ms FROM audit_entries`
	if len(conditions) > 0 {
		query += " WHERE " + strings.Join(conditions, " AND ")
	}
	return query + fmt.Sprintf(" ORDER BY timestamp DESC, id DESC LIMIT %d", q.Limit+1), args, nil
}

// ceil is t in the log's resolution, rounded up: a row at 10.5 µs is kept as
// 10 µs, and "since 10.7" must not find it.
func ceil(t time.Time) time.Time {
	return t.Add(time.Microsecond - time.Nanosecond).UTC().Truncate(time.Microsecond)
}

func scanEntry(rows *sql.Rows) (Entry, error) {
	var e Entry
	var at stamp
	var metadata string
	err := rows.Scan(&e.ID, &at, &e.ProductID, &e.UserID, &e.EngineID, &e.Action, &e.Actor, &e.RequestID, &e.Outcome, &metadata, &e.DurationMS)
	if err != nil {
		return Entry{}, err
	}
	e.Timestamp = at.Time
	e.Metadata, err = decodeMetadata(metadata)
	return e, err
}
