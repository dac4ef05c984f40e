package terraform

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// needTerraform skips a test where terraform is not installed: Debian has no package of it.
// In CI the test fails instead, unless ORCH_TEST_TERRAFORM=skip says that this is intended.
func needTerraform(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("terraform"); err == nil {
		return
	}
	if os.Getenv("CI") == "true" && os.Getenv("ORCH_TEST_TERRAFORM") != "skip" {
		t.Fatal("terraform 1.11 or newer is not installed, so the Terraform provider cannot be tested; with ORCH_TEST_TERRAFORM=skip these tests are skipped")
	}
	t.Skip("terraform is not installed")
}

// goBuild builds the provider once for all tests.
var goBuild = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(harness.BinDir, "..", "provider")
	bin := filepath.Join(dir, "terraform-provider-orch")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=1.2.3", "-o", bin, ".")
	cmd.Dir, cmd.Env = providerDir(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the provider: %w: %s", err, out)
	}
	return bin, nil
})

// providerDir is the provider's module.
func providerDir() string { return filepath.Join(harness.Repository, "terraform", "provider") }

// built returns the provider's executable.
func built(t *testing.T) string {
	t.Helper()
	needTerraform(t)
	bin, err := goBuild()
	if err != nil {
		t.Fatal(err)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

// workspace is a directory with a configuration of Terraform, and its state.
type workspace struct {
	t       *testing.T
	dir     string // of the configuration; logs, plans and what is stored are beside it
	env     []string
	secrets []string // must be in no file of Terraform
}

// header is the beginning of each configuration.
const header = `
terraform {
  required_providers {
    orch = { source = "septemberai/orch" }
  }
}
`

// newWorkspace returns a workspace with a configuration, whose terraform uses the built
// provider by dev_overrides.
func newWorkspace(t *testing.T, config string, env ...string) *workspace {
	t.Helper()
	bin := built(t)
	return newWorkspaceWith(t, fmt.Sprintf("provider_installation {\n  dev_overrides { \"septemberai/orch\" = %q }\n}\n", filepath.Dir(bin)), config, env...)
}

// newWorkspaceWith is newWorkspace with terraform's own configuration.
func newWorkspaceWith(t *testing.T, cli, config string, env ...string) *workspace {
	t.Helper()
	root := t.TempDir()
	w := &workspace{t: t, dir: filepath.Join(root, "config")}
	w.file("main.tf", header+config)
	w.file("../cli.tfrc", cli)
	w.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + root, "TF_CLI_CONFIG_FILE=" + filepath.Join(root, "cli.tfrc"),
		"CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "TF_INPUT=0", "TF_LOG=TRACE", "TF_LOG_PATH=" + filepath.Join(root, "trace.log"),
	}, env...)
	return w
}

// file writes a file, whose name is relative to the configuration.
func (w *workspace) file(name, content string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// read returns a file beside the configuration.
func (w *workspace) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "..", name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// frame is what terraform draws around messages.
var frame = regexp.MustCompile(`[│╷╵]|\s+`)

// run runs terraform, and returns its exit code and everything that it prints, with each run
// of white space as one space.
func (w *workspace) run(args ...string) (int, string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), harness.Patience)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "terraform", args...)
	cmd.Dir, cmd.Env = w.dir, w.env
	out, err := cmd.CombinedOutput()
	if os.Getenv("ORCH_TEST_LOG") != "" {
		w.t.Logf("terraform %s (%s): %v\n%s", strings.Join(args, " "), time.Since(began).Round(time.Millisecond), err, out)
	}
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		w.t.Fatalf("terraform %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), frame.ReplaceAllString(frame.ReplaceAllString(string(out), " "), " ")
}

// must runs terraform, which must succeed, and returns what it prints.
func (w *workspace) must(args ...string) string {
	w.t.Helper()
	code, out := w.run(args...)
	if code != 0 {
		w.t.Fatalf("terraform %s ended with %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// apply applies the configuration.
func (w *workspace) apply(args ...string) string {
	w.t.Helper()
	return w.must(append([]string{"apply", "-no-color", "-auto-approve"}, args...)...)
}

// refused runs terraform, which must fail, with all these texts in its messages.
func (w *workspace) refused(texts []string, args ...string) {
	w.t.Helper()
	code, out := w.run(args...)
	if code != 1 {
		w.t.Errorf("terraform %s ended with %d: %s", strings.Join(args, " "), code, out)
	}
	w.says(out, texts...)
}

// says fails the test unless a text contains all others.
func (w *workspace) says(out string, texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			w.t.Errorf("terraform does not say %q, but: %s", text, out)
		}
	}
}

// registry returns the host of the registry that terraform uses by default.
func (w *workspace) registry() string {
	w.t.Helper()
	_, host, _ := strings.Cut(w.must("providers", "-no-color"), "provider[")
	host, _, found := strings.Cut(host, "/septemberai/orch]")
	if !found {
		w.t.Fatal("terraform does not show the provider's address")
	}
	return host
}

// changes makes a plan and fails the test unless it has changes, or none. It returns what
// terraform prints.
func (w *workspace) changes(want bool, args ...string) string {
	w.t.Helper()
	code, out := w.run(append([]string{"plan", "-no-color", "-detailed-exitcode", "-out", "../plan"}, args...)...)
	if exit := map[bool]int{true: 2}[want]; code != exit {
		w.t.Fatalf("the plan ended with %d, want %d: %s", code, exit, out)
	}
	w.clean()
	return out
}

// keepSecret makes clean look for a secret from now on.
func (w *workspace) keepSecret(secret string) {
	if secret != "" {
		w.secrets = append(w.secrets, secret)
	}
}

// clean fails the test if a file of terraform contains a secret: the state, its backup, the
// plan, or the log at its most detailed level.
func (w *workspace) clean() {
	w.t.Helper()
	seen := 0
	look := func(name string, content []byte) {
		seen++
		for _, secret := range w.secrets {
			if bytes.Contains(content, []byte(secret)) {
				w.t.Errorf("%s contains a secret: %.12s...", name, secret)
			}
		}
	}
	for _, pattern := range []string{"*.tfstate*", "../trace.log", "../plan"} {
		files, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				w.t.Fatal(err)
			}
			look(name, b)
			if filepath.Base(name) == "plan" {
				unzip(w.t, b, look)
			}
		}
	}
	if seen < 2 {
		w.t.Errorf("only %d files were searched for secrets", seen)
	}
}

// unzip passes each file of a plan to look.
func unzip(t *testing.T, b []byte, look func(string, []byte)) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		look("plan: "+f.Name, content)
	}
}

// productOf returns the product with a slug.
func productOf(t *testing.T, admin *client.Client, slug string) *client.Product {
	t.Helper()
	list, err := admin.Products(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Products {
		if p.Slug == slug {
			return &p
		}
	}
	t.Fatalf("there is no product %s", slug)
	return nil
}

// wantKey fails the test unless the service accepts a platform key, or refuses it.
func wantKey(t *testing.T, url, key string, want bool) {
	t.Helper()
	_, err := (&client.Client{BaseURL: url, PlatformKey: key}).Status(t.Context())
	if (err == nil) != want || err != nil && !errors.Is(err, client.ErrInvalidPlatformKey) {
		t.Errorf("the service says %v to a key; it should accept it: %t", err, want)
	}
}
