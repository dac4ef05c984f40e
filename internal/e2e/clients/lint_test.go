package clients

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLint: redocly and spectral have nothing to say about the document, not even a hint,
// and would say it.
func TestLint(t *testing.T) {
	t.Parallel()
	dir := checkout(t, "tools/openapi")
	document := filepath.Join(dir, "..", "..", "docs", "openapi.yaml")
	linters := map[string][]string{
		"redocly":  {"lint", "--config", "lint/redocly.yaml", document},
		"spectral": {"lint", "--ruleset", "lint/spectral.yaml", "--fail-severity", "hint", document},
	}
	for name, args := range linters {
		run(t, dir, nil, bin(dir, name), args...)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	// Both are only warnings: the document stays valid.
	worse := strings.NewReplacer("      tags: [engines]\n", "", "  license: {name: MPL-2.0, identifier: MPL-2.0}\n", "").Replace(string(text))
	if err := os.WriteFile(document, []byte(worse), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"redocly": "info-license", "spectral": "operation-tags"} {
		if out, err := try(t, dir, nil, bin(dir, name), linters[name]...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s accepts a document with warnings: %v, %s", name, err, out)
		}
	}
}
