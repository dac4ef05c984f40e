package clients

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestTypeScript: the types of the TypeScript client are those of the document, its own
// tests pass against a service, the package has what it should have and nothing else, and
// the example in its README compiles with the package and works.
func TestTypeScript(t *testing.T) {
	t.Parallel()
	dir := checkout(t, "clients/typescript")
	run(t, dir, nil, bin(dir, "openapi-typescript"), "../../docs/openapi.yaml", "-o", "fresh.ts")
	same(t, filepath.Join(dir, "src/schema.ts"), filepath.Join(dir, "fresh.ts"), "run `npm run generate` in clients/typescript")
	same(t, filepath.Join(dir, "LICENSE"), filepath.Join(dir, "../../LICENSE"), "npm packs no file of another directory, so copy it")

	r := harness.StartService(t, harness.Shared, nil)
	environ := []string{"ORCH_URL=" + r.URL, "ORCH_ADMIN_KEY=" + harness.AdminKey, "NODE_OPTIONS=--test-reporter=tap"}
	out := run(t, dir, environ, "npm", "test")
	if !strings.Contains(out, "\n# skipped 0\n") || strings.Contains(out, "\n# pass 0\n") {
		t.Errorf("not all tests ran:\n%s", out)
	}

	// In a directory of its own, which finds the compiler and Node's types above.
	consumer := filepath.Join(dir, "consumer")
	if err := os.Mkdir(consumer, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, consumer, nil, "npm", "install", "--offline", "--no-save", pack(t, dir))
	write(t, filepath.Join(consumer, "package.json"), `{"type": "module"}`)
	write(t, filepath.Join(consumer, "example.ts"), example(t, dir))
	run(t, consumer, nil, bin(dir, "tsc"), "--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "example.ts")
	key := r.Product(t, nil).PlatformKey
	out = run(t, consumer, []string{"ORCH_URL=" + r.URL, "ORCH_PLATFORM_KEY=" + key}, "node", "example.js")
	if !strings.Contains(out, "I will remember: the sky is blue") {
		t.Errorf("the example in the README printed %q", out)
	}
	key = r.Product(t, map[string]any{"max_engines": 0}).PlatformKey
	if out = run(t, consumer, []string{"ORCH_URL=" + r.URL, "ORCH_PLATFORM_KEY=" + key}, "node", "example.js"); !strings.Contains(out, "no more engines") {
		t.Errorf("without engines, the example in the README printed %q", out)
	}
}

// same compares two files.
func same(t *testing.T, is, want, remedy string) {
	t.Helper()
	a, err := os.ReadFile(is)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s is outdated: %s", filepath.Base(is), remedy)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// example returns the example in the README.
func example(t *testing.T, dir string) string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```ts$(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	if len(found) != 1 {
		t.Fatalf("the README has %d examples", len(found))
	}
	return found[0][1]
}

// pack makes the package as it would be published, and returns its path.
func pack(t *testing.T, dir string) string {
	t.Helper()
	out := run(t, dir, nil, "npm", "pack", "--silent", "--json")
	var packed []struct {
		Filename string
		Files    []struct{ Path string }
	}
	if err := json.Unmarshal([]byte(out), &packed); err != nil || len(packed) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	want := []string{"LICENSE", "README.md", "package.json"}
	sources, err := filepath.Glob(filepath.Join(dir, "src", "*.ts"))
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	for _, source := range sources {
		name := "dist/" + strings.TrimSuffix(filepath.Base(source), ".ts")
		want = append(want, name+".js", name+".d.ts")
	}
	var got []string
	for _, f := range packed[0].Files {
		got = append(got, f.Path)
	}
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the package has %q, want %q", got, want)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err != nil || bytes.Contains(manifest, []byte(`"dependencies"`)) {
		t.Errorf("the client needs nothing at run time: %v, %s", err, manifest)
	}
	return filepath.Join(dir, packed[0].Filename)
}
