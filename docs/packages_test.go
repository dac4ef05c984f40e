package docs

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/septemberai/orch/"

// packages returns what each package of the service imports of the others, by path below
// the module: the ones that internal/service is built from, with internal/service itself.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./internal/service")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name, ours := strings.CutPrefix(fields[0], module)
		if !ours {
			continue
		}
		all[name] = nil
		for _, imported := range fields[1:] {
			if of, ours := strings.CutPrefix(imported, module); ours {
				all[name] = append(all[name], of)
			}
		}
		slices.Sort(all[name])
	}
	return all
}

// graph draws packages as a Mermaid graph.
func graph(all map[string][]string) string {
	var b strings.Builder
	b.WriteString("```mermaid\nflowchart TD\n")
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if len(all[name]) > 0 {
			fmt.Fprintf(&b, "    %s --> %s\n", name, strings.Join(all[name], " & "))
		}
	}
	b.WriteString("```\n")
	return b.String()
}

// TestPackageGraph compares the graph in architecture.md with the imports.
func TestPackageGraph(t *testing.T) {
	doc, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	want := graph(packages(t))
	start := strings.Index(string(doc), "```mermaid\nflowchart TD\n")
	if start < 0 {
		t.Fatalf("architecture.md has no graph of the packages; it should be:\n%s", want)
	}
	got := string(doc)[start:]
	if end := strings.Index(got, "\n```\n"); end >= 0 {
		got = got[:end+len("\n```\n")]
	}
	if got != want {
		t.Errorf("the graph in architecture.md:\n%s\nthe imports:\n%s", got, want)
	}
}

// floors are the layers of packages, from the top down. A package may import only packages of
// lower layers.
var floors = [][]string{
	{"internal/service"},
	{"internal/config", "internal/ops", "server", "images"},
	{"scheduler"},
	{"scheduler/guard", "scheduler/health", "scheduler/idle", "scheduler/pool", "scheduler/reconcile"},
	{"scheduler/operation", "scheduler/witness"},
	{"scheduler/boot"},
	{"registry", "cluster", "secrets", "audit", "brain/store", "internal/preflight"},
	{"jobs"},
	{"internal/adminkeys", "internal/fault", "internal/link", "internal/pause", "internal/reload", "internal/tokenlife", "engine", "nomad-jobs", "docs"},
	{"internal/traces", "brain"},
}

// leaves do not import each other, except that cluster uses the label of an engine's port and
// the meta of an engine's job from jobs.
var leaves = []string{"registry", "cluster", "jobs", "secrets", "audit", "images"}

// TestEngineImportsNothing: of all packages of orch, the domain imports only what a worker
// reports.
func TestEngineImportsNothing(t *testing.T) {
	if of, there := packages(t)["engine"]; !there || !slices.Equal(of, []string{"brain"}) {
		t.Errorf("there: %t; it imports %v", there, of)
	}
}

// TestForbiddenImports reports imports of a higher or the same layer.
func TestForbiddenImports(t *testing.T) {
	floor := map[string]int{}
	for i, names := range floors {
		for _, name := range names {
			floor[name] = i
		}
	}
	all := packages(t)
	for name, imports := range all {
		of, known := floor[name]
		if !known {
			t.Errorf("%s is in no layer", name)
			continue
		}
		for _, imported := range imports {
			at, known := floor[imported]
			if known && at <= of {
				t.Errorf("%s imports %s, which is not in a lower layer", name, imported)
			}
			if slices.Contains(leaves, name) && slices.Contains(leaves, imported) && name+" "+imported != "cluster jobs" {
				t.Errorf("%s imports %s: leaves do not import each other", name, imported)
			}
		}
	}
	for name := range floor {
		if _, there := all[name]; !there {
			t.Errorf("there is no package %s any more", name)
		}
	}
}
