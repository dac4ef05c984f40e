package engine

import (
	"testing"
	"time"
)

func TestWithin(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, c := range []struct{ off, want time.Duration }{
		{time.Hour, time.Minute}, {time.Minute, time.Minute}, {time.Second, time.Second}, {-time.Hour, -time.Hour},
	} {
		if got := Within(now.Add(c.off), now, time.Minute).Sub(now); got != c.want {
			t.Errorf("a deadline in %s is brought to %s, want %s", c.off, got, c.want)
		}
	}
}
