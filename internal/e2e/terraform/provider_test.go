package terraform

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestProvider runs all cases on one service.
func TestProvider(t *testing.T) {
	built(t)
	r := harness.StartService(t, harness.Shared, nil)
	for name, run := range map[string]func(*testing.T, *harness.Replica){
		"product": product, "platform key": platformKey, "engine": engines, "failed engine": failedEngine, "slow engine": slowEngine,
		"unknown url": unknownURL, "mirror": mirror, "wrong settings": wrongSettings,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, r)
		})
	}
}

func asAdmin(r *harness.Replica) []string {
	return []string{"ORCH_URL=" + r.URL, "ORCH_ADMIN_KEY=" + harness.AdminKey}
}

// product takes a product through its life: created, changed, changed by somebody else,
// deleted by somebody else, imported, and destroyed.
func product(t *testing.T, r *harness.Replica) {
	const config = `
variable "max_engines" { default = 10 }
resource "orch_product" "p" {
  slug         = "whole-life"
  display_name = "Whole life"
  policy = {
    max_engines    = var.max_engines
    allowed_images = ["b/*", "a/*"]
    idle_timeout_s = 0
  }
}
data "orch_product" "p" {
  slug       = orch_product.p.slug
  depends_on = [orch_product.p]
}
output "limit" { value = data.orch_product.p.policy.max_engines }
`
	w := newWorkspace(t, config, asAdmin(r)...)
	w.keepSecret(harness.AdminKey)
	admin, ctx := r.Admin(), t.Context()

	w.apply()
	made := productOf(t, admin, "whole-life")
	if p := made.Policy; made.DisplayName != "Whole life" || p.MaxEngines == nil || *p.MaxEngines != 10 || p.IdleTimeoutS == nil || *p.IdleTimeoutS != 0 || len(p.AllowedImages) != 2 {
		t.Fatalf("the product is %+v", made)
	}
	w.changes(false)
	w.says(w.must("output", "-no-color"), "limit = 10")

	w.apply("-var", "max_engines=20")
	if now := productOf(t, admin, "whole-life"); *now.Policy.MaxEngines != 20 || now.ProductID != made.ProductID {
		t.Fatalf("the product is %+v", now)
	}

	// Somebody else changes the policy before the plan: the plan shows it, and restores it.
	byHand := func(n int) {
		t.Helper()
		if _, err := admin.ChangePolicy(ctx, made.ProductID, func(p client.Policy) client.Policy { p.MaxEngines, p.WarmPool = &n, new(int); return p }); err != nil {
			t.Fatal(err)
		}
	}
	byHand(99)
	w.says(w.changes(true), "max_engines = 99 -> 10", "warm_pool = 0 -> null")
	// Somebody changes it after the plan: the plan is not applied.
	byHand(98)
	w.refused([]string{"Somebody changed the policy after the plan was made"}, "apply", "-no-color", "../plan")
	if now := productOf(t, admin, "whole-life"); *now.Policy.MaxEngines != 98 {
		t.Errorf("the policy is %+v", now.Policy)
	}
	w.apply()
	w.changes(false)

	// Import, by the slug and by the id.
	w.must("state", "rm", "orch_product.p")
	w.refused([]string{`No product has the id or the slug "whole"`}, "import", "-no-color", "orch_product.p", "whole")
	for i, id := range []string{"whole-life", made.ProductID} {
		if i > 0 {
			w.must("state", "rm", "orch_product.p")
		}
		w.must("import", "-no-color", "orch_product.p", id)
		w.changes(false)
	}

	// Somebody deletes it: the plan creates it.
	if err := admin.DeleteProduct(ctx, made.ProductID); err != nil {
		t.Fatal(err)
	}
	w.says(w.changes(true), "orch_product.p will be created")
	w.apply()
	made = productOf(t, admin, "whole-life")

	// A product with an engine is not destroyed.
	key, err := admin.RotatePlatformKey(ctx, made.ProductID, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.keepSecret(key)
	of := &client.Client{BaseURL: r.URL, PlatformKey: key}
	if err := harness.ProvisionSurely(ctx, of, "user"); err != nil {
		t.Fatal(err)
	}
	w.refused([]string{
		`The product "whole-life" could not be deleted`, "(PRODUCT_HAS_ENGINES)", "still has one engine that this plan does not destroy", "orch engine list -admin -product whole-life", "Request id: ",
	}, "destroy", "-no-color", "-auto-approve")
	if _, err := of.Destroy(ctx, "user"); err != nil {
		t.Fatal(err)
	}
	w.must("destroy", "-no-color", "-auto-approve")
	w.clean()
	w.says(w.read("trace.log"), "call of orch") // the log that clean searches has the calls
	harness.WantCode(t, harness.ErrOf(admin.Product(ctx, made.ProductID)), 404, "PRODUCT_NOT_FOUND")
}

// platformKey hands each new platform key to whoever stores it, and to nobody else.
func platformKey(t *testing.T, r *harness.Replica) {
	const config = `
variable "rotation" { default = null }
variable "overlap" { default = null }
variable "in_state" { default = null }
resource "orch_product" "p" {
  slug                         = "keys"
  display_name                 = "Keys"
  platform_key_rotation        = var.rotation
  platform_key_overlap_seconds = var.overlap
  platform_key_in_state        = var.in_state
}
ephemeral "orch_platform_key" "p" {
  product_id = orch_product.p.id
  generation = orch_product.p.platform_key_generation
}
resource "terraform_data" "store" {
  triggers_replace = orch_product.p.platform_key_generation
  provisioner "local-exec" {
    command     = "printf %s \"$${KEY:?the key was lost}\" >../key"
    environment = { KEY = ephemeral.orch_platform_key.p.platform_key }
  }
}
`
	w := newWorkspace(t, config, asAdmin(r)...)
	w.apply()
	first := w.read("key")
	w.keepSecret(first)
	wantKey(t, r.URL, first, true)
	w.changes(false)

	// A plan rotates nothing. An apply does, and the old key stays valid for a while.
	w.says(w.changes(true, "-var", "rotation=1"), `The platform key of the product "keys" will be rotated`, "valid for 3600 seconds")
	wantKey(t, r.URL, first, true)
	if w.read("key") != first {
		t.Error("the plan has stored a key")
	}
	w.must("apply", "-no-color", "../plan")
	second := w.read("key")
	w.keepSecret(second)
	if second == first {
		t.Error("the key was not rotated")
	}
	wantKey(t, r.URL, first, true)
	wantKey(t, r.URL, second, true)
	w.changes(false, "-var", "rotation=1")

	// Without an overlap, no old key stays valid.
	w.apply("-var", "rotation=2", "-var", "overlap=0")
	third := w.read("key")
	w.keepSecret(third)
	wantKey(t, r.URL, first, false)
	wantKey(t, r.URL, second, false)
	wantKey(t, r.URL, third, true)
	w.clean()

	// A key that could not be stored is lost: nothing stores an empty one.
	w.refused([]string{"the key was lost"}, "apply", "-no-color", "-auto-approve", "-var", "rotation=2", "-var", "overlap=0", "-replace=terraform_data.store")
	w.apply("-var", "rotation=3", "-var", "overlap=0")
	wantKey(t, r.URL, w.read("key"), true)
	w.keepSecret(w.read("key"))
	w.clean()

	// The key gets into the state only by an explicit choice, and by a rotation.
	w.refused([]string{"The platform key can get into the state only by a rotation"}, "plan", "-no-color", "-var", "rotation=3", "-var", "overlap=0", "-var", "in_state=true")
	w.apply("-var", "rotation=4", "-var", "in_state=true")
	if key := w.read("key"); !strings.Contains(w.read("config/terraform.tfstate"), key) {
		t.Error("the key is not in the state")
	}
	w.changes(false, "-var", "rotation=4", "-var", "in_state=true")
	w.apply("-var", "rotation=4")
	if key := w.read("key"); strings.Contains(w.read("config/terraform.tfstate"), key) {
		t.Error("the key is still in the state")
	}
	w.must("destroy", "-no-color", "-auto-approve")
	w.clean()
}
