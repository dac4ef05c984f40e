package client

import (
	"context"
	"iter"
	"net/url"
	"time"
)

// AuditFilter selects rows of the audit log, and a page of them. A zero field does not
// filter.
type AuditFilter struct {
	UserID    string
	Action    string
	Since     time.Time // rows that began at or after this time
	Until     time.Time // rows that began before this time
	ProductID string    // for the admin only
	Limit     int       // rows per page: 1 to 1000; 0: 100
	Cursor    string    // NextCursor of the previous page
}

// AuditEntry is one row of the audit log.
type AuditEntry struct {
	ID         int64          `json:"id"`
	Timestamp  time.Time      `json:"timestamp"` // when it began
	ProductID  string         `json:"product_id"`
	UserID     string         `json:"user_id"`
	EngineID   string         `json:"engine_id"`
	Action     string         `json:"action"`
	Actor      string         `json:"actor"` // system, admin, admin:NAME of a key, or the product's slug
	RequestID  string         `json:"request_id"`
	Outcome    string         `json:"outcome"` // ok, a code, or interrupted
	Metadata   map[string]any `json:"metadata"`
	DurationMS *int64         `json:"duration_ms"` // nil: not finished
}

// AuditList is one page of the audit log, newest first.
type AuditList struct {
	Entries    []AuditEntry `json:"entries"`
	NextCursor string       `json:"next_cursor,omitempty"` // empty: this is the last page
}

// Audit lists one page of the audit log: the product's rows, with a platform key, or those
// of any product, with only an admin key or for a ProductID.
func (c *Client) Audit(ctx context.Context, f AuditFilter) (*AuditList, error) {
	q := query{}
	q.text("user_id", f.UserID)
	q.text("action", f.Action)
	q.time("since", f.Since)
	q.time("until", f.Until)
	q.text("product_id", f.ProductID)
	q.number("limit", f.Limit)
	q.text("cursor", f.Cursor)
	k := platform
	if c.PlatformKey == "" || f.ProductID != "" {
		k = admin
	}
	if c.AdminKey == "" {
		k = platform // and the service returns the error
	}
	list := new(AuditList)
	return list, c.get(ctx, k, withQuery("/audit", url.Values(q)), list)
}

// AllAudit iterates over the rows of all pages from the filter's page on, newest first. It
// ends after an error.
func (c *Client) AllAudit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEntry, error] {
	return walk(func(cursor string) ([]AuditEntry, string, error) {
		if cursor != "" {
			f.Cursor = cursor
		}
		list, err := c.Audit(ctx, f)
		return list.Entries, list.NextCursor, err
	})
}
