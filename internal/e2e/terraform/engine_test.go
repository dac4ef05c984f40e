package terraform

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// engines creates a product and its engine in one apply, reads them by the data sources, and
// protects the engine.
func engines(t *testing.T, r *harness.Replica) {
	const config = `
variable "protected" { default = null }
variable "image" { default = null }
variable "user" { default = "alice/1 ü" }
resource "orch_product" "p" {
  slug                  = "engines"
  display_name          = "Engines"
  platform_key_in_state = true
}
provider "orch" {
  alias        = "p"
  admin_key    = "of nobody"
  platform_key = orch_product.p.platform_key
}
resource "orch_engine" "e" {
  provider            = orch.p
  user_id             = var.user
  engine_version      = var.image
  deletion_protection = var.protected
}
ephemeral "orch_engine_key" "e" {
  provider  = orch.p
  user_id   = orch_engine.e.user_id
  engine_id = orch_engine.e.id
}
resource "terraform_data" "store" {
  triggers_replace = orch_engine.e.id
  provisioner "local-exec" {
    command     = "printf %s \"$KEY\" >../key"
    environment = { KEY = ephemeral.orch_engine_key.e.api_key }
  }
}
data "orch_engine" "user" {
  provider = orch.p
  user_id  = orch_engine.e.user_id
  depends_on = [orch_engine.e]
}
data "orch_engine" "id" { engine_id = orch_engine.e.id }
data "orch_engines" "product" {
  provider   = orch.p
  depends_on = [orch_engine.e]
}
data "orch_engines" "all" {
  product_id = orch_product.p.id
  status     = "running"
  depends_on = [orch_engine.e]
}
data "orch_status" "product" {
  provider   = orch.p
  depends_on = [orch_engine.e]
}
data "orch_status" "all" {}
output "seen" {
  value = join(" ", [
    data.orch_engine.user.status, data.orch_engine.id.product_slug, length(data.orch_engines.product.engines), length(data.orch_engines.all.engines),
    try(data.orch_engines.all.engines[0].engine_id == orch_engine.e.id, false), data.orch_status.product.total, data.orch_status.all.all_products, data.orch_status.product.all_products,
  ])
}
`
	w := newWorkspace(t, config, asAdmin(r)...)
	w.apply()
	w.says(w.must("output", "-no-color"), `seen = "running engines 1 1 true 1 true false"`)
	key := w.read("key")
	w.keepSecret(key)
	w.changes(false)
	platform := keyInState(w)
	c := &client.Client{BaseURL: r.URL, PlatformKey: platform}
	e, err := c.Engine(t.Context(), "alice/1 ü")
	if err != nil || e.APIKey != key {
		t.Fatalf("%v; the key is the engine's: %t", err, err == nil && e.APIKey == key)
	}
	harness.Remember(t, e, key, "the sky is blue")

	// What would destroy the engine is refused by the plan.
	const refusal = `The engine of "alice/1 ü" is protected`
	w.refused([]string{refusal, "destroy its volume"}, "plan", "-no-color", "-destroy")
	w.refused([]string{refusal}, "plan", "-no-color", "-var", "image=reference-engine.v2")
	w.refused([]string{refusal}, "plan", "-no-color", "-var", "user=bob")
	w.refused([]string{refusal}, "apply", "-no-color", "-auto-approve", "-replace=orch_engine.e")

	// A stopped engine is no difference. An imported one is protected.
	if _, err := c.Stop(t.Context(), "alice/1 ü"); err != nil {
		t.Fatal(err)
	}
	w.apply()
	w.must("state", "rm", "orch_engine.e")
	w.must("import", "-no-color", "orch_engine.e", "alice/1 ü")
	w.changes(false)
	w.refused([]string{refusal}, "plan", "-no-color", "-destroy")
	if _, err := c.Start(t.Context(), "alice/1 ü"); err != nil {
		t.Fatal(err)
	}
	e = harness.IsNow(t, c, "alice/1 ü", "running", "")
	if err := harness.Export(t, e, key).Knows("the sky is blue"); err != nil {
		t.Error(err)
	}

	// Another engine of the same user is another engine.
	if _, err := c.Destroy(t.Context(), "alice/1 ü"); err != nil {
		t.Fatal(err)
	}
	w.says(w.changes(true, "-target=orch_engine.e"), "orch_engine.e will be created")
	if err := harness.ProvisionSurely(t.Context(), c, "alice/1 ü"); err != nil {
		t.Fatal(err)
	}
	w.refused([]string{`The engine of "alice/1 ü" is another one now`, "(ENGINE_ALREADY_EXISTS)", "terraform import ADDRESS 'alice/1 ü'"}, "apply", "-no-color", "-auto-approve", "-target=orch_engine.e")
	w.must("import", "-no-color", "orch_engine.e", "alice/1 ü")
	w.apply("-var", "protected=false")
	w.must("destroy", "-no-color", "-auto-approve", "-var", "protected=false")
	w.clean()
	list, err := r.Admin().Products(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Products {
		if p.Slug == "engines" {
			t.Error("the product is still there")
		}
	}
}

// keyInState returns the platform key that the configuration has put into the state.
func keyInState(w *workspace) string {
	w.t.Helper()
	const before = `"platform_key": "`
	_, rest, found := strings.Cut(w.read(filepath.Base(w.dir)+"/terraform.tfstate"), before)
	key, _, _ := strings.Cut(rest, `"`)
	if !found || key == "" {
		w.t.Fatal("there is no platform key in the state")
	}
	return key
}

// failedEngine keeps an engine that did not boot, with its volume, in the state.
func failedEngine(t *testing.T, r *harness.Replica) {
	const config = `
variable "protected" { default = null }
resource "orch_engine" "e" {
  user_id             = "user"
  engine_version      = "reference-engine.exit-at-start"
  deletion_protection = var.protected
}
`
	c := r.Product(t, map[string]any{"allowed_images": []string{"reference-engine.*"}, "max_engines": 1})
	w := newWorkspace(t, config, "ORCH_URL="+r.URL, "ORCH_PLATFORM_KEY="+c.PlatformKey)
	w.keepSecret(c.PlatformKey)
	w.refused([]string{`The engine of "user" is not usable`, "(ENGINE_BOOT_FAILED)", "terraform untaint ADDRESS"}, "apply", "-no-color", "-auto-approve")
	e, err := c.Engine(t.Context(), "user")
	if err != nil || e.Status != client.Failed {
		t.Fatalf("%+v, %v", e, err)
	}
	w.keepSecret(e.APIKey)
	// It is tainted, and protected nevertheless.
	w.refused([]string{`The engine of "user" is protected`}, "apply", "-no-color", "-auto-approve")
	w.must("untaint", "-no-color", "orch_engine.e")
	w.changes(false)
	w.apply("-var", "protected=false")
	w.must("destroy", "-no-color", "-auto-approve", "-var", "protected=false")
	harness.WantCode(t, harness.ErrOf(c.Engine(t.Context(), "user")), 404, "ENGINE_NOT_FOUND")
	w.clean()
}

// slowEngine boots longer than its timeout allows, and is in the state nevertheless.
func slowEngine(t *testing.T, r *harness.Replica) {
	const config = `
resource "orch_engine" "e" {
  user_id             = "user"
  engine_version      = "reference-engine.never-listen"
  deletion_protection = false
  timeouts            = { create = "15s" }
}
`
	c := r.Product(t, map[string]any{"allowed_images": []string{"reference-engine.*"}})
	w := newWorkspace(t, config, "ORCH_URL="+r.URL, "ORCH_PLATFORM_KEY="+c.PlatformKey)
	w.refused([]string{"The engine was still booting", "see the argument timeouts", "status provisioning"}, "apply", "-no-color", "-auto-approve")
	w.says(w.must("state", "list"), "orch_engine.e")
	w.must("destroy", "-no-color", "-auto-approve")
	harness.WantCode(t, harness.ErrOf(c.Engine(t.Context(), "user")), 404, "ENGINE_NOT_FOUND")

	// One that has no room anywhere leaves nothing behind.
	if _, err := r.Admin().SetPolicy(t.Context(), productIDOf(t, c), client.Policy{MemoryMB: ptr(1 << 30)}); err != nil {
		t.Fatal(err)
	}
	w.file("main.tf", header+`
resource "orch_engine" "e" {
  user_id  = "user"
  timeouts = { create = "5m" }
}
`)
	w.refused([]string{`The engine of "user" could not be created`, "(CAPACITY_EXHAUSTED)", "No node has room"}, "apply", "-no-color", "-auto-approve")
	if out := w.must("state", "list"); out != "" {
		t.Errorf("the state has %s", out)
	}
}

func ptr[T any](v T) *T { return &v }

// productIDOf returns the id of the product that a client calls for.
func productIDOf(t *testing.T, c *client.Client) string {
	t.Helper()
	list, err := c.Audit(t.Context(), client.AuditFilter{Limit: 1})
	if err != nil || len(list.Entries) == 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	return list.Entries[0].ProductID
}

// unknownURL configures the provider with an address that is known only after apply.
func unknownURL(t *testing.T, r *harness.Replica) {
	const config = `
variable "path" { default = "" }
variable "name" { default = 1 }
resource "terraform_data" "url" {
  input = "${var.url}${var.path}"
}
variable "url" {}
provider "orch" { url = terraform_data.url.output }
resource "orch_product" "p" {
  slug         = "unknown-url"
  display_name = "Unknown url"
  policy       = { max_engines = var.name }
}
`
	w := newWorkspace(t, config, append(asAdmin(r), "TF_VAR_url="+r.URL)...)
	w.apply()
	w.changes(false)
	w.says(w.changes(true, "-var", "path=/"), "The product unknown-url was not compared with the service")
	w.apply("-var", "path=/", "-var", "name=2")
	if p := productOf(t, r.Admin(), "unknown-url"); *p.Policy.MaxEngines != 2 {
		t.Errorf("the policy is %+v", p.Policy)
	}
	w.must("destroy", "-no-color", "-auto-approve", "-var", "path=/")
}

// mirror installs the provider from a directory, as a machine without internet does.
func mirror(t *testing.T, r *harness.Replica) {
	bin := built(t)
	w := newWorkspaceWith(t, "", `
data "orch_status" "all" {}
output "registry" { value = data.orch_status.all.registry }
`, asAdmin(r)...)
	dir := filepath.Join(w.dir, "..", "mirror")
	w.file("../cli.tfrc", "provider_installation {\n  filesystem_mirror {\n    path = \""+dir+"\"\n  }\n}\n")
	link(t, bin, filepath.Join(dir, w.registry(), "septemberai", "orch", "1.2.3", runtime.GOOS+"_"+runtime.GOARCH, "terraform-provider-orch_v1.2.3"))
	w.says(w.must("init", "-no-color"), "Installed septemberai/orch v1.2.3")
	w.apply()
	w.says(w.must("output", "-no-color"), `registry = "ok"`)
	w.changes(false)
}

// wrongSettings says what is wrong with the provider's arguments.
func wrongSettings(t *testing.T, r *harness.Replica) {
	const config = `
data "orch_status" "all" {}
`
	for _, c := range []struct {
		env  []string
		want string
	}{
		{nil, "The address of orch is missing"},
		{[]string{"ORCH_URL=orch.example.com"}, `"orch.example.com" must be an http or https address`},
		{[]string{"ORCH_URL=" + r.URL}, "the environment variable ORCH_PLATFORM_KEY or ORCH_ADMIN_KEY"},
		{[]string{"ORCH_URL=" + r.URL, "ORCH_ADMIN_KEY=another-admin-key"}, "(INVALID_ADMIN_KEY)"},
		{[]string{"ORCH_URL=" + r.URL, "ORCH_PLATFORM_KEY=pk-sept-another"}, "(INVALID_PLATFORM_KEY)"},
		{[]string{"ORCH_URL=" + r.URL, "ORCH_CACERT=/no/such/file"}, "open /no/such/file"},
	} {
		w := newWorkspace(t, config, c.env...)
		w.refused([]string{c.want}, "plan", "-no-color")
	}
}
