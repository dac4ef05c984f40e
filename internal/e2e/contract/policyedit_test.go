package contract

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestPolicyEditorsLoseNothing lets many editors change one policy concurrently, each based
// on what it read: in the end every change is there. A change based on an outdated policy
// is refused.
func TestPolicyEditorsLoseNothing(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "1"})
	theAdmin, ctx := r.Admin(), t.Context()
	p, err := theAdmin.RegisterProduct(ctx, "edited", "Edited", &client.Policy{MaxEngines: new(0)})
	if err != nil {
		t.Fatal(err)
	}
	const editors = 6
	got := harness.Outcomes(editors, func(i int) error {
		_, err := theAdmin.ChangePolicy(ctx, p.ProductID, func(policy client.Policy) client.Policy {
			policy.AllowedImages = append(policy.AllowedImages, fmt.Sprint("image-", i))
			return policy
		})
		return err
	})
	if got["ok"] != editors {
		t.Fatalf("editors got %v", got)
	}
	whole, err := theAdmin.Product(ctx, p.ProductID)
	if err != nil || len(whole.Policy.AllowedImages) != editors || *whole.Policy.MaxEngines != 0 {
		t.Errorf("%+v, %v", whole, err)
	}

	call := func(method, path, tag string, body string) (status int, etag, text string) {
		t.Helper()
		var match []string
		if tag != "" {
			match = []string{"If-Match", tag}
		}
		got := r.Send(t, harness.Operation{Method: method, Path: path, Body: body, Key: harness.AdminHeader}, harness.AdminKey, match...)
		return got.Status, got.Header.Get("ETag"), got.Text
	}
	one, policy := "/products/"+p.ProductID, "/products/"+p.ProductID+"/policy"
	set := func(tag string, n int) (int, string, string) {
		return call(http.MethodPut, policy, tag, fmt.Sprintf(`{"policy": {"max_engines": %d}}`, n))
	}
	_, read, _ := call(http.MethodGet, one, "", "")
	status, written, _ := set(read, 1)
	if status != 200 || written == "" || written == read {
		t.Fatalf("with the tag that was read (%s): %d, %s", read, status, written)
	}
	if status, _, text := set(read, 2); status != 412 || !strings.Contains(text, "POLICY_CHANGED") {
		t.Errorf("with one that is out of date: %d %s", status, text)
	}
	if status, again, _ := set(read, 1); status != 200 || again != written {
		t.Errorf("a retry of the same change, as after a lost response: %d, %s", status, again)
	}
	for _, tag := range []string{`"x", ` + written, "*", ""} {
		if status, _, text := set(tag, 1); status != 200 {
			t.Errorf("If-Match %s: %d %s", tag, status, text)
		}
	}
	if _, now, _ := call(http.MethodGet, one, "", ""); now != written {
		t.Errorf("it is read with %s, and was written with %s", now, written)
	}
}
