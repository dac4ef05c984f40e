package engine

import (
	"crypto/rand"
	"regexp"
	"strings"
	"testing"
)

func TestEngineIDsTellWhoseTheyAre(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{26}$`)
	deployment := strings.ToLower(rand.Text())
	first, second := NewID(deployment), NewID(deployment)
	if first == second || !form.MatchString(first) || !strings.HasPrefix(first, idPrefix(deployment)) {
		t.Errorf("got %q and %q in deployment %q", first, second, deployment)
	}
	if !MadeBy(first, deployment) || MadeBy("zzzzzz"+first[6:], deployment) || MadeBy(first[:20], deployment) {
		t.Errorf("%q is not distinguished from others", first)
	}
	if !IsID(first) {
		t.Errorf("%q is not recognized", first)
	}
	for _, id := range []string{"", first[:25], first + "a", "1" + first[1:], first[:25] + "/", first[:13] + "1" + first[14:], strings.ToUpper(first)} {
		if IsID(id) {
			t.Errorf("%q counts as an engine_id", id)
		}
	}
	if MadeBy(first, "") {
		t.Error("a service without an id considers engines its own")
	}
}
