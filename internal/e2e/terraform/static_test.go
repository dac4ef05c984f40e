package terraform

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

func link(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestExamples validates each example as terraform would, and checks its format.
func TestExamples(t *testing.T) {
	needTerraform(t)
	t.Parallel()
	examples, err := filepath.Abs(filepath.Join(providerDir(), "examples"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorkspace(t, "")
	if code, out := w.run("fmt", "-check", "-recursive", "-diff", examples); code != 0 {
		t.Errorf("the format of the examples: %s", out)
	}
	files, err := filepath.Glob(filepath.Join(examples, "*", "*", "*.tf"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, filepath.Join(examples, "provider", "provider.tf"))
	if len(files) < 9 {
		t.Fatalf("only %d examples were found", len(files))
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		w.file("example.tf", string(b))
		config := header
		if filepath.Base(file) == "provider.tf" {
			config = ""
		}
		w.file("main.tf", config)
		if code, out := w.run("validate", "-no-color"); code != 0 {
			t.Errorf("%s: %s", file, out)
		}
	}
}

// TestModulesFormat checks the format of the modules and their example. TestModules validates
// them.
func TestModulesFormat(t *testing.T) {
	needTerraform(t)
	t.Parallel()
	dir, err := filepath.Abs(filepath.Join(harness.Repository, "deploy", "terraform"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorkspace(t, "")
	if code, out := w.run("fmt", "-check", "-recursive", "-diff", dir); code != 0 {
		t.Errorf("the format of the modules: %s", out)
	}
}

// TestHowTo validates what docs/terraform.md shows, as one configuration.
func TestHowTo(t *testing.T) {
	needTerraform(t)
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(harness.Repository, "docs", "terraform.md"))
	if err != nil {
		t.Fatal(err)
	}
	var config []string
	for _, m := range regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(m[1], "provider_installation") { // terraform's own configuration
			config = append(config, m[1])
		}
	}
	if len(config) < 2 {
		t.Fatalf("the page has %d configurations", len(config))
	}
	w := newWorkspace(t, "")
	w.file("main.tf", strings.Join(config, "\n"))
	w.must("fmt", "-check", "-diff")
	w.must("validate", "-no-color")
}

// TestValidation: what the service would refuse, terraform refuses without calling it.
func TestValidation(t *testing.T) {
	needTerraform(t)
	t.Parallel()
	w := newWorkspace(t, `
resource "orch_product" "wrong" {
  slug         = "Not A Slug"
  display_name = ""
  policy = {
    max_engines    = -1
    memory_mb      = 9
    allowed_images = ["ok", "[a-"]
    sleep_mode     = "hibernate"
    isolation      = "none"
    node_pool      = "a b"
    key_proof_path = "/health"

    snapshot_interval_s = 299
    snapshot_keep       = 0
    on_node_lost        = "move"
    node_lost_after_s   = 59
  }
  platform_key_overlap_seconds = 86401
}
resource "orch_engine" "wrong" {
  user_id = "a/../b"
}
data "orch_engine" "both" {
  user_id   = "a"
  engine_id = "b"
}
data "orch_product" "neither" {}
data "orch_engines" "wrong" { status = "asleep" }
`)
	w.refused([]string{
		"Slug must be 1 to 40 characters", "display_name must have 1 to 200 bytes", "policy.max_engines is -1; it must be at least 0", "policy.memory_mb is 9; it must be at least 10",
		"is not a glob pattern", "sleep_mode must be", "isolation must be", "node_pool is not a valid name", "key_proof_path must be",
		"policy.snapshot_interval_s is 299; it must be 0", "policy.snapshot_keep is 0; it must be at least 1", "policy.on_node_lost must be", "policy.node_lost_after_s is 59; it must be at least 60",
		"between 0 and 86400, got: 86401", `segment "." or ".."`, "Set either user_id or engine_id", "Set either id or slug", `value must be one of: ["provisioning"`,
	}, "validate", "-no-color")
	// What is not known yet is no mistake.
	w.file("main.tf", header+`
resource "terraform_data" "d" { input = "x" }
resource "orch_product" "right" {
  slug         = terraform_data.d.output
  display_name = terraform_data.d.output
  policy       = { node_pool = terraform_data.d.output, allowed_images = [terraform_data.d.output] }
}
resource "orch_engine" "right" { user_id = terraform_data.d.output }
`)
	w.must("validate", "-no-color")
	w.env = append(w.env, "ORCH_URL=http://127.0.0.1:1", "ORCH_ADMIN_KEY=x", "ORCH_PLATFORM_KEY=x")
	w.must("plan", "-no-color")
}

// TestDocs: the provider's pages are those that its schema and the examples give.
func TestDocs(t *testing.T) {
	needTerraform(t)
	t.Parallel()
	built(t)
	out := t.TempDir()
	cmd := exec.Command(filepath.Join(harness.Repository, "tools", "terraform-docs.sh"), out)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if diff, err := exec.Command("diff", "-ru", filepath.Join(providerDir(), "docs"), out).CombinedOutput(); err != nil {
		t.Errorf("terraform/provider/docs is outdated; run make docs-terraform: %v\n%s", err, diff)
	}
}
