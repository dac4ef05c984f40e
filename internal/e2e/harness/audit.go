package harness

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/septemberai/orch/client"
)

// AuditLog requests a page with a raw query string.
func AuditLog(t *testing.T, c *client.Client, query string) (entries []client.AuditEntry, next string) {
	t.Helper()
	var page client.AuditList
	if err := c.Do(t.Context(), http.MethodGet, "/audit"+query, nil, &page); err != nil {
		t.Fatal(err)
	}
	return page.Entries, page.NextCursor
}

// Audited lists audit rows of an action, as the admin.
func (r *Replica) Audited(t *testing.T, action string) []AuditRow {
	t.Helper()
	var page struct{ Entries []AuditRow }
	if err := r.Admin().Do(t.Context(), http.MethodGet, "/audit?limit=1000&action="+action, nil, &page); err != nil {
		t.Fatal(err)
	}
	return page.Entries
}

// AuditRow is an audit entry as the admin sees it.
type AuditRow struct {
	EngineID string `json:"engine_id"`
	UserID   string `json:"user_id"`
	Actor    string
	Outcome  string
	Metadata map[string]any
}

// Actions counts a user's audit rows by action and relevant details.
func Actions(t *testing.T, c *client.Client, user string) map[string]int {
	t.Helper()
	entries, _ := AuditLog(t, c, "?limit=1000&user_id="+user)
	n := map[string]int{}
	for _, e := range entries {
		name := e.Action
		if by, ok := e.Metadata["by"]; ok {
			name += fmt.Sprint(" by ", by)
		}
		if reason, ok := e.Metadata["reason"]; ok && e.Action == "health_failed" {
			name += fmt.Sprint(" ", reason)
		}
		n[name]++
	}
	return n
}
