package clients

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestREADME runs the example of the Go client in README.md.
func TestREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(harness.Repository, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "\n```go\n")
	shown, _, ended := strings.Cut(shown, "\n```\n")
	if !ended {
		t.Fatal("README.md has no example")
	}
	program := filepath.Join(t.TempDir(), "main.go")
	write(t, program, "package main\n\nimport (\n\"context\"\n\"errors\"\n\"fmt\"\n\"os\"\n\n\"github.com/septemberai/orch/client\"\n)\n\nfunc main() {\n"+shown+"\n}\n")
	r := harness.StartService(t, harness.Shared, nil)
	for want, policy := range map[string]map[string]any{"the engine is at http://127.0.0.1:": nil, "no more engines": {"max_engines": 0}} {
		environ := []string{"ORCH_URL=" + r.URL, "ORCH_PLATFORM_KEY=" + r.Product(t, policy).PlatformKey}
		if out := run(t, harness.Repository, environ, "go", "run", program); !strings.HasPrefix(out, want) {
			t.Errorf("it printed %q, want %q", out, want)
		}
	}
}
