package scheduler

import "testing"

func TestHealthOf(t *testing.T) {
	for _, c := range []struct {
		failed, total int
		want          Health
	}{
		{0, 0, HealthOK}, {0, 5, HealthOK}, {1, 1, HealthCritical}, {1, 4, HealthCritical}, {1, 5, HealthDegraded}, {2, 9, HealthCritical},
		{20, 100, HealthDegraded}, {21, 100, HealthCritical},
	} {
		if got := healthOf(c.failed, c.total); got != c.want {
			t.Errorf("%d of %d failed: got %s, want %s", c.failed, c.total, got, c.want)
		}
	}
}
