package outages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// loseAnswer is a proxy to the shared Consul that drops the response to one write after it
// was carried out: the next write whose value matches of.
func loseAnswer(t *testing.T, of func(value []byte, what string) bool) (way string, what *atomic.Value) {
	t.Helper()
	what = new(atomic.Value)
	what.Store("")
	proxy := harness.ToConsul(t)
	return harness.ConsulProxy(t, func(w http.ResponseWriter, r *http.Request) bool {
		lose, _ := what.Load().(string)
		if lose == "" || r.URL.Path != "/v1/txn" {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var ops []struct{ KV struct{ Value []byte } }
		_ = json.Unmarshal(body, &ops) // if it cannot be parsed, nothing matches
		for _, op := range ops {
			if of(op.KV.Value, lose) && what.CompareAndSwap(lose, "") {
				proxy.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
		}
		return false
	}), what
}

// TestLostAnswerIsAudited: the write that begins an operation is carried out, but its
// response is lost. The caller cannot be told, but the audit row contains how the operation
// ended.
func TestLostAnswerIsAudited(t *testing.T) {
	t.Parallel()
	// A warm engine's row is written again when its job is labelled, after its provision: a
	// user for each engine tells these writes from those of the next case.
	way, lose := loseAnswer(t, func(row []byte, of string) bool {
		user, kind, _ := strings.Cut(of, " ")
		return bytes.Contains(row, []byte(fmt.Sprintf(`"user_id":%q`, user))) && bytes.Contains(row, []byte(fmt.Sprintf(`"kind":%q`, kind)))
	})
	r := harness.StartService(t, harness.Shared, map[string]string{"CONSUL_HTTP_ADDR": way, "ORCH_WARM_POOL": "1"})
	s, ctx := harness.OpenStores(t, harness.Shared), t.Context()
	c := r.Product(t, nil)
	unlike := r.Product(t, map[string]any{"memory_mb": 33}) // no warm engine has this kind
	s.AwaitWarm(r, 1)
	for _, tc := range []struct {
		c            *client.Client
		user, action string
		call         func(c *client.Client, user string) error
		status       string
	}{
		{c, "warm", "provision", func(c *client.Client, u string) error { return harness.ErrOf(c.Provision(ctx, u, "")) }, "running"},
		{unlike, "cold", "provision", func(c *client.Client, u string) error { return harness.ErrOf(c.Provision(ctx, u, "")) }, "running"},
		{unlike, "cold", "stop", func(c *client.Client, u string) error { return harness.ErrOf(c.Stop(ctx, u)) }, "stopped"},
	} {
		lose.Store(tc.user + " " + tc.action)
		e := harness.WantCode(t, tc.call(tc.c, tc.user), 503, "BACKEND_UNAVAILABLE")
		harness.Eventually(t, tc.action+" is done and audited", func() error {
			got, err := tc.c.Engine(ctx, tc.user)
			if err != nil || got.Status != tc.status {
				return fmt.Errorf("%+v, %w", got, err)
			}
			rows, _ := harness.AuditLog(t, tc.c, "?user_id="+tc.user+"&action="+tc.action)
			for _, row := range rows {
				if row.RequestID == e.RequestID && row.Outcome != "interrupted" {
					if row.Outcome != "ok" || row.EngineID != got.EngineID {
						t.Fatalf("audit row %+v of engine %s, which is %s", row, got.EngineID, got.Status)
					}
					return nil
				}
			}
			return fmt.Errorf("audit rows %+v", rows)
		})
	}
	if r.Logs.Count(`kind="warm claim"`) == 0 {
		t.Error("no warm engine was claimed")
	}
	for user, c := range map[string]*client.Client{"warm": c, "cold": unlike} {
		if _, err := c.Destroy(ctx, user); err != nil {
			t.Error(err)
		}
	}
}

// TestLostAnswerOfProductIsAudited is the same for changes of a product.
func TestLostAnswerOfProductIsAudited(t *testing.T) {
	t.Parallel()
	way, lose := loseAnswer(t, func(row []byte, slug string) bool { return bytes.Contains(row, []byte(fmt.Sprintf(`"slug":%q`, slug))) })
	r := harness.StartService(t, harness.Shared, map[string]string{"CONSUL_HTTP_ADDR": way})
	ctx, c := t.Context(), &client.Client{BaseURL: r.URL, AdminKey: harness.AdminKey}
	const slug = "lost-answers"
	var productID string
	for _, tc := range []struct {
		action string
		call   func() error
	}{
		{"product_register", func() error { return harness.ErrOf(c.RegisterProduct(ctx, slug, "Lost", nil)) }},
		{"policy_update", func() error { return harness.ErrOf(c.SetPolicy(ctx, productID, client.Policy{MaxEngines: new(7)})) }},
		{"platform_key_rotate", func() error { return harness.ErrOf(c.RotatePlatformKey(ctx, productID, 0)) }},
	} {
		lose.Store(slug)
		e := harness.WantCode(t, tc.call(), 503, "BACKEND_UNAVAILABLE")
		harness.Eventually(t, tc.action+" is audited as done", func() error {
			rows, _ := harness.AuditLog(t, c, "?action="+tc.action)
			for _, row := range rows {
				if row.RequestID == e.RequestID && row.Outcome != "interrupted" {
					if row.Outcome != "ok" {
						t.Fatalf("audit row %+v of a change that was made", row)
					}
					productID = row.ProductID
					return nil
				}
			}
			return fmt.Errorf("audit rows %+v", rows)
		})
	}
	if err := c.DeleteProduct(ctx, productID); err != nil {
		t.Error(err)
	}
}
