package audit

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

const (
	// Limits of a page, in rows.
	defaultLimit = 100
	maxLimit     = 1000
)

// Query selects the rows that [Log.Entries] lists. A zero field does not filter.
type Query struct {
	ProductID string
	UserID    string
	Action    string
	Since     time.Time // rows that began at or after this time
	Until     time.Time // rows that began before this time
	Limit     int       // rows per page: 1 to 1000; 0 means 100
	Cursor    string    // NextCursor of the previous page, with the same filters
}

// Page is a part of the log, newest first.
type Page struct {
	Entries []Entry
	// NextCursor continues after the last entry; empty on the last page. Rows that are
	// written meanwhile neither repeat nor hide rows on later pages.
	NextCursor string
}

// Entries lists rows, newest first; rows with equal time stamps by descending id.
// [ErrCursor]: the cursor is not from Entries; [ErrUnavailable].
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

// selection builds the SQL of a query with only the conditions that it has, so that each
// combination is planned for its own index. It selects one row more than the page, to
// detect whether there is another page.
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

// ceil rounds t up to the log's resolution: a row of 10.5 µs is stored as 10 µs, and "since
// 10.7" must not find it.
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
