package scheduler

import (
	"regexp"
	"strings"
	"testing"
)

func TestEngineIDsTellWhoseTheyAre(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{26}$`)
	ours := &Scheduler{brand: Brand("orch", "default")}
	first, second := ours.newEngineID(), ours.newEngineID()
	if first == second || !form.MatchString(first) || !strings.HasPrefix(first, ours.brand) {
		t.Errorf("got %q and %q under %q", first, second, ours.brand)
	}
	for _, other := range []string{Brand("orch2", "default"), Brand("orch", "other"), Brand("orchd", "efault")} {
		if other == ours.brand {
			t.Errorf("another deployment has the brand %q too", other)
		}
	}
}
