package scheduler

import (
	"regexp"
	"strings"
	"testing"
)

func TestEngineIDsTellWhoseTheyAre(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{26}$`)
	ours := &Scheduler{brand: brand("orch", "default")}
	first, second := ours.newEngineID(), ours.newEngineID()
	if first == second || !form.MatchString(first) || !strings.HasPrefix(first, ours.brand) {
		t.Errorf("got %q and %q under %q", first, second, ours.brand)
	}
	for _, other := range []string{brand("orch2", "default"), brand("orch", "other"), brand("orchd", "efault")} {
		if other == ours.brand {
			t.Errorf("another deployment has the brand %q too", other)
		}
	}
}
