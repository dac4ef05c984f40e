package harness

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/septemberai/orch/internal/contract"
)

// Every response that a suite must cause, or that is excused, is in the document, and every
// suite exists.
func TestDriven(t *testing.T) {
	doc, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	answers := contract.Answers(doc)
	is := func(a string) bool {
		return slices.ContainsFunc(answers, func(b contract.Answer) bool { return b.String() == a })
	}
	suites := map[string]bool{contractSuite: true}
	for suite, driven := range drivenElsewhere {
		suites[suite] = true
		for _, a := range driven {
			if !is(a) {
				t.Errorf("%s, of the suite %s, is not documented", a, suite)
			}
		}
	}
	for code, suite := range drivenByCode {
		suites[suite] = true
		if !slices.ContainsFunc(answers, func(a contract.Answer) bool { return a.Code == code }) {
			t.Errorf("%s, of the suite %s, is not documented", code, suite)
		}
	}
	for suite := range suites {
		if _, err := os.Stat(filepath.Join("..", suite, "main_test.go")); err != nil {
			t.Errorf("no suite %s: %v", suite, err)
		}
	}
	for _, why := range notDriven {
		for _, a := range why.answers {
			if !slices.Contains(answers, a) {
				t.Errorf("%s is excused and not documented", a)
			}
		}
	}
	// A response in no list is assigned to the contract suite.
	if got := drivenBy(contract.Answer{Operation: "new", Status: 200}); got != contractSuite {
		t.Errorf("a new response is assigned to %s", got)
	}
}
