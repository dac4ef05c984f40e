package contract

import (
	"os"
	"strings"
	"testing"
)

func TestMetricsAreFresh(t *testing.T) {
	want, err := Document()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/metrics.md is not what docs/openapi.yaml and internal/ops say; run make docs")
	}
	if strings.Contains(want, "|  |") {
		t.Error("a figure has no type, unit or meaning")
	}
}

// The pages for readers contain every operation with an example, and every code.
func TestPagesAreComplete(t *testing.T) {
	doc := load(t)
	read := func(file string) string {
		b, err := os.ReadFile("../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	api, operations := read("api.md"), read("operations.md")
	sections := strings.Split(api, "\n## ")
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			title, found := method+" "+path+"\n", false
			for _, s := range sections {
				found = found || strings.HasPrefix(s, title) && strings.Contains(s, "$ curl ")
			}
			if !found {
				t.Errorf("docs/api.md has no section with an example of %s", title)
			}
		}
	}
	for code := range codesOf(t, doc) {
		if !strings.Contains(operations, "`"+code+"`") {
			t.Errorf("docs/operations.md does not explain what to do about %s", code)
		}
	}
}
