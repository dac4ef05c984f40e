package contract

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestAudit(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx := t.Context()
	admin := &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	p, err := admin.RegisterProduct(ctx, "audited", "Audited", &client.Policy{AllowedImages: []string{"*"}, MaxEngines: new(2)})
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: r.URL, PlatformKey: p.PlatformAPIKey}
	stranger := r.Product(t, nil)
	if _, err := stranger.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}

	e, err := c.Provision(ctx, "u", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Provision(ctx, "bad", "reference-engine.exit-at-start")
	failed := harness.WantCode(t, err, 502, "ENGINE_BOOT_FAILED")
	_, err = c.Provision(ctx, "third", "")
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	for _, call := range []func() error{
		func() error { return harness.ErrOf(c.RotateKey(ctx, "u")) }, func() error { return harness.ErrOf(c.Stop(ctx, "u")) },
		func() error { return harness.ErrOf(c.Start(ctx, "u")) }, func() error { return harness.ErrOf(c.Destroy(ctx, "u")) },
		func() error { return harness.ErrOf(c.Destroy(ctx, "bad")) },
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}

	want := []string{
		"product_register ok", "provision ok", "provision ENGINE_BOOT_FAILED", "provision QUOTA_EXCEEDED", "rotate_key ok", "stop ok", "start ok",
		"destroy ok", "destroy ok", "policy_update ok",
	}
	// On a busy machine, a row is completed after its call has returned. Rows are ordered
	// newest first.
	var mine []client.AuditEntry
	harness.Eventually(t, "all is audited", func() error {
		var got []string
		mine, _ = harness.AuditLog(t, c, "")
		for _, row := range slices.Backward(mine) {
			got = append(got, row.Action+" "+row.Outcome)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
	for _, row := range mine {
		if row.ProductID != p.ProductID || row.Actor != map[bool]string{true: "admin", false: "audited"}[row.Action == "product_register" || row.Action == "policy_update"] ||
			row.RequestID == "" || row.DurationMS == nil || row.Metadata == nil || time.Since(row.Timestamp) > time.Hour {
			t.Errorf("row %+v", row)
		}
		if row.UserID == "u" && row.EngineID != e.EngineID {
			t.Errorf("row %+v is not of engine %s", row, e.EngineID)
		}
		if row.Action == "provision" && row.Outcome == "ok" {
			if ms, ok := row.Metadata["boot_ms"].(float64); !ok || ms <= 0 {
				t.Errorf("row %+v does not contain the boot time", row)
			}
		}
		if row.UserID == "bad" && row.Action == "provision" && row.RequestID != failed.RequestID {
			t.Errorf("row %+v is not of request %s", row, failed.RequestID)
		}
	}

	count := func(c *client.Client, query string) int {
		entries, _ := harness.AuditLog(t, c, query)
		return len(entries)
	}
	since := "?since=" + url.QueryEscape(mine[3].Timestamp.Format(time.RFC3339Nano))
	for query, want := range map[string]int{"?user_id=u": 5, "?action=destroy": 2, "?user_id=u&action=destroy": 1, "?limit=3": 3, since: 4, "?user_id=nobody": 0} {
		if got := count(c, query); got != want {
			t.Errorf("%s: %d rows, want %d", query, got, want)
		}
	}
	if all, one := count(admin, ""), count(admin, "?product_id="+p.ProductID); one != len(want) || all != one+2 {
		t.Errorf("the admin sees %d rows, %d of the product", all, one)
	}
	var paged []int64
	for row, err := range c.AllAudit(ctx, client.AuditFilter{Limit: 4}) {
		if err != nil {
			t.Fatal(err)
		}
		paged = append(paged, row.ID)
	}
	if len(paged) != len(want) || !slices.IsSortedFunc(paged, func(a, b int64) int { return int(b - a) }) {
		t.Errorf("by cursor: %v", paged)
	}
	for _, bad := range []string{"?product_id=x", "?action=dance", "?since=yesterday", "?limit=0", "?cursor=nonsense"} {
		harness.WantCode(t, c.Do(ctx, http.MethodGet, "/audit"+bad, nil, nil), 400, "INVALID_REQUEST")
	}

	numbers, err := c.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if numbers.Provisions1h != 1 || numbers.TotalProvisions != 1 || numbers.TotalDestroys != 1 || numbers.AvgBootMS <= 0 {
		t.Errorf("metrics %+v", numbers)
	}

	// Denied admits are counted per user, reason and minute.
	for range 5 {
		if _, err := harness.Admit(ctx, c, "nobody", false, false); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, "the denials are counted", func() error {
		rows, _ := harness.AuditLog(t, c, "?action=admit_denied")
		n := 0.0
		for _, row := range rows {
			if row.UserID == "nobody" && row.Metadata["reason"] == "engine_not_found" {
				n += row.Metadata["count"].(float64)
			}
		}
		if n != 5 {
			return errCount(n)
		}
		return nil
	})
	if _, err := stranger.Destroy(ctx, "u"); err != nil {
		t.Error(err)
	}
}

type errCount float64

func (e errCount) Error() string { return "not 5" }
