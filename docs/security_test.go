package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testFunc  = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	testNamed = regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/[^`]*)?`")
)

// TestSecurityRules: each rule of security.md names a test, and each test that security.md
// and guarantees.md name exists.
func TestSecurityRules(t *testing.T) {
	exists := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			exists[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for _, page := range []string{"security.md", "guarantees.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testNamed.FindAllStringSubmatch(string(text), -1) {
			if !exists[m[1]] {
				t.Errorf("%s names %s, which does not exist", page, m[1])
			}
		}
		inRules := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			switch {
			case !strings.HasPrefix(line, "|"):
				inRules = false
			case strings.HasPrefix(line, "| Rule |"):
				inRules = true
			case inRules && !strings.HasPrefix(line, "|---"):
				rules++
				if cells := strings.Split(strings.Trim(line, "|"), "|"); !testNamed.MatchString(cells[len(cells)-1]) {
					t.Errorf("%s: no test shows this rule: %s", page, line)
				}
			}
		}
	}
	if rules == 0 {
		t.Error("security.md has no rules")
	}
}
