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

// TestStillWaits: the wait for the next attempt at an engine or a kind of warm engines
// lasts at most as long as a backoff can be, whatever clock wrote it.
func TestStillWaits(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	longest := Backoff{Base: time.Second, Max: time.Minute}.Longest()
	for _, c := range []struct {
		off  time.Duration
		want bool
	}{
		{-time.Hour, false}, {0, false}, {time.Second, true}, {longest, true}, {longest + time.Second, false}, {time.Hour, false},
	} {
		if got := StillWaits(now.Add(c.off), now, longest); got != c.want {
			t.Errorf("a time in %s, put off by %s at most: waits %t, want %t", c.off, longest, got, c.want)
		}
	}
}
