package scheduler

import (
	"regexp"
	"strings"
	"testing"

	"github.com/septemberai/orch/registry"
)

func TestEngineIDsTellWhoseTheyAre(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{26}$`)
	deployment := newID()
	s := &Scheduler{}
	s.guard = &guard{s: s, record: &registry.Deployment{ID: deployment}}
	first, second := s.newEngineID(), s.newEngineID()
	if first == second || !form.MatchString(first) || !strings.HasPrefix(first, brand(deployment)) {
		t.Errorf("got %q and %q in deployment %q", first, second, deployment)
	}
	w := &world{deploymentID: deployment}
	if !w.ours(first) || w.ours("zzzzzz"+first[6:]) || w.ours(first[:20]) {
		t.Errorf("%q is not told from others", first)
	}
	if (&world{}).ours(first) {
		t.Error("a service that does not know its own id takes engines for its own")
	}
}
