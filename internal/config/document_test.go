package config

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDocumentIsFresh(t *testing.T) {
	b, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(b), Document()); diff != "" {
		t.Errorf("docs/configuration.md does not match the settings (-); run make docs:\n%s", diff)
	}
}

// Every setting is in the document once, in a section, with a kind and a meaning.
func TestDocumentIsComplete(t *testing.T) {
	text := Document()
	for i, v := range Variables() {
		if v.Kind == "" || v.Description == "" || i == 0 && v.Section == "" {
			t.Errorf("%+v", v)
		}
		if strings.Count(text, "| `"+v.Name+"` |") != 1 {
			t.Errorf("%s is not there exactly once", v.Name)
		}
	}
}
