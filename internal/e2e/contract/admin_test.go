package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

func TestProducts(t *testing.T) {
	t.Parallel()
	all := harness.StartReplicas(t, 2, map[string]string{"ORCH_VOLUME_POOL": "1"})
	ctx := t.Context()
	admin, other := &client.Client{BaseURL: all[0].URL, AdminKey: harness.AdminKey}, &client.Client{BaseURL: all[1].URL, AdminKey: harness.AdminKey}
	p, err := admin.RegisterProduct(ctx, "acme", "ACME Inc.", &client.Policy{MaxEngines: new(3)})
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: all[0].URL, PlatformKey: p.PlatformAPIKey}
	if _, err := c.Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	shown, err := other.Product(ctx, p.ProductID)
	if err != nil {
		t.Fatal(err)
	}
	if shown.Slug != "acme" || shown.DisplayName != "ACME Inc." || shown.Engines != 1 || *shown.Policy.MaxEngines != 3 {
		t.Errorf("shown as %+v", shown)
	}
	listed, err := other.Products(ctx)
	if err != nil || listed.Total != 1 || len(listed.Products) != 1 || listed.Products[0].ProductID != p.ProductID {
		t.Errorf("listed as %+v, %v", listed, err)
	}

	// A lower limit removes no engine and refuses the next one, on every replica.
	set, err := other.SetPolicy(ctx, p.ProductID, client.Policy{MaxEngines: new(1)})
	if err != nil || *set.MaxEngines != 1 {
		t.Fatalf("%+v, %v", set, err)
	}
	_, err = c.Provision(ctx, "second", "")
	harness.WantCode(t, err, 429, "QUOTA_EXCEEDED")
	for _, body := range []any{map[string]any{}, map[string]any{"policy": map[string]any{"max_engine": 1}}, map[string]any{"policy": map[string]any{"max_engines": -1}}, map[string]any{"policy": nil}} {
		harness.WantCode(t, other.Do(ctx, http.MethodPut, "/products/"+p.ProductID+"/policy", body, nil), 400, "INVALID_REQUEST")
	}

	// Both keys are valid until the overlap ends, on every replica.
	rotate := func(overlap time.Duration) *client.Client {
		t.Helper()
		key, err := admin.RotatePlatformKey(ctx, p.ProductID, overlap)
		if err != nil {
			t.Fatal(err)
		}
		return &client.Client{BaseURL: all[1].URL, PlatformKey: key}
	}
	overlapping := rotate(20 * time.Second)
	for _, k := range []*client.Client{c, harness.At(c, all[1]), overlapping, harness.At(overlapping, all[0])} {
		if _, err := k.Engine(ctx, "u"); err != nil {
			t.Error(err)
		}
	}
	harness.Eventually(t, "the overlap ends", func() error {
		_, err := c.Engine(ctx, "u")
		if err == nil {
			return os.ErrExist
		}
		harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
		return nil
	})
	third := rotate(0)
	_, err = overlapping.Engine(ctx, "u")
	harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
	harness.WantCode(t, harness.ErrOf(admin.RotatePlatformKey(ctx, p.ProductID, 86401*time.Second)), 400, "INVALID_REQUEST")

	harness.WantCode(t, other.DeleteProduct(ctx, p.ProductID), 409, "PRODUCT_HAS_ENGINES")
	if _, err := third.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if err := other.DeleteProduct(ctx, p.ProductID); err != nil {
		t.Fatal(err)
	}
	_, err = third.Engine(ctx, "u")
	harness.WantCode(t, err, 401, "INVALID_PLATFORM_KEY")
	for _, call := range []error{
		harness.ErrOf(admin.Product(ctx, p.ProductID)), admin.DeleteProduct(ctx, p.ProductID),
		harness.ErrOf(admin.SetPolicy(ctx, p.ProductID, client.Policy{})), harness.ErrOf(admin.RotatePlatformKey(ctx, p.ProductID, 0)),
	} {
		harness.WantCode(t, call, 404, "PRODUCT_NOT_FOUND")
	}
	nobody := &client.Client{BaseURL: all[0].URL, AdminKey: "nonsense-of-16-characters"}
	for method, path := range map[string]string{http.MethodGet: "/products", http.MethodDelete: "/products/x", http.MethodPut: "/products/x/policy", http.MethodPost: "/products/x/rotate-platform-key"} {
		harness.WantCode(t, nobody.Do(ctx, method, path, nil, nil), 401, "INVALID_ADMIN_KEY")
	}
	// The slug can be used again.
	if _, err := admin.RegisterProduct(ctx, "acme", "ACME again", nil); err != nil {
		t.Error(err)
	}
}

// Named keys of the admin: the audit log names who made a change, a read-only key changes
// nothing, and the file is read again when it changes. The one key stays valid beside them.
func TestNamedAdminKeys(t *testing.T) {
	t.Parallel()
	const alice, next, dashboard = "the-key-of-alice", "the next key of alice", "the-key-of-a-dashboard"
	sum := sha256.Sum256([]byte(dashboard))
	watcher := "dashboard read-only sha256:" + hex.EncodeToString(sum[:]) + "\n"
	file := filepath.Join(t.TempDir(), "keys")
	write := func(lines string) {
		t.Helper()
		if err := os.WriteFile(file+".next", []byte(lines+watcher), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
	}
	write("alice admin " + alice + "\n")
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_ADMIN_KEYS_FILE": file, "ORCH_VOLUME_POOL": "0"})
	ctx := t.Context()
	by := func(key string) *client.Client { return &client.Client{BaseURL: r.URL, AdminKey: key} }
	p, err := by(alice).RegisterProduct(ctx, "named", "Named", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Admin().SetPolicy(ctx, p.ProductID, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	page, err := by(dashboard).Audit(ctx, client.AuditFilter{ProductID: p.ProductID})
	if err != nil {
		t.Fatal(err)
	}
	actors := map[string]string{}
	for _, e := range page.Entries {
		actors[e.Action] = e.Actor
	}
	if actors["product_register"] != "admin:alice" || actors["policy_update"] != "admin" {
		t.Errorf("the actors are %v", actors)
	}

	for _, o := range harness.Operations {
		if o := o.Of("nobody", harness.NoProduct); o.Key == harness.AdminHeader && o.Method != http.MethodGet {
			r.Send(t, o, dashboard).Want(t, o, 403, "ADMIN_KEY_READ_ONLY")
		}
	}
	if _, err := by(dashboard).Product(ctx, p.ProductID); err != nil {
		t.Error(err)
	}

	works := func(key string) error { return harness.ErrOf(by(key).Products(ctx)) }
	write("alice admin " + alice + "\nalice admin " + next + "\n")
	harness.Eventually(t, "the next key is valid", func() error { return works(next) })
	if err := works(alice); err != nil {
		t.Errorf("the key that is replaced: %v", err)
	}
	write("alice admin short\n") // which changes nothing
	r.Reload()
	if err := errors.Join(works(alice), works(next)); err != nil {
		t.Errorf("after a file that cannot be used: %v", err)
	}
	write("alice admin " + next + "\n")
	r.Reload()
	harness.WantCode(t, works(alice), 401, "INVALID_ADMIN_KEY")
	if err := errors.Join(works(next), works(harness.AdminKey)); err != nil {
		t.Error(err)
	}
	if err := by(next).DeleteProduct(ctx, p.ProductID); err != nil {
		t.Error(err)
	}
}

// Each operation refuses wrong keys with 429 after too many of them. Right keys from the same
// address are let in.
func TestTooManyWrongKeys(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_WRONG_KEYS_PER_MINUTE": "1", "ORCH_VOLUME_POOL": "0"})
	harness.WantCode(t, harness.ErrOf((&client.Client{BaseURL: r.URL, AdminKey: "nonsense"}).Products(t.Context())), 401, "INVALID_ADMIN_KEY")
	for _, o := range harness.Operations {
		if o := o.Of("nobody", harness.NoProduct); o.Key != "" {
			// One more of them is allowed for each minute that this takes.
			harness.Eventually(t, o.ID+" is refused", func() error {
				got := r.Send(t, o, "nonsense")
				if got.Status != 429 || got.Code != "TOO_MANY_WRONG_KEYS" {
					return fmt.Errorf("it returns %d %s", got.Status, got.Text)
				}
				return nil
			})
		}
	}
	if _, err := r.Admin().Products(t.Context()); err != nil {
		t.Errorf("with the right key: %v", err)
	}
}

// The admin key changes without a restart; an invalid file changes nothing.
func TestAdminKeyFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("the-first-admin-key\n")
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_ADMIN_KEY": "", "ORCH_ADMIN_KEY_FILE": file, "ORCH_VOLUME_POOL": "0"})
	works := func(key string) error {
		return harness.ErrOf((&client.Client{BaseURL: r.URL, AdminKey: key}).Products(t.Context()))
	}
	if err := works("the-first-admin-key"); err != nil {
		t.Fatal(err)
	}
	write("short")
	r.Reload()
	if err := works("the-first-admin-key"); err != nil {
		t.Error(err)
	}
	write("the-second-admin-key")
	r.Reload()
	if err := works("the-second-admin-key"); err != nil {
		t.Error(err)
	}
	harness.WantCode(t, works("the-first-admin-key"), 401, "INVALID_ADMIN_KEY")
}
