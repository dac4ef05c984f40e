package engine

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Base: 5 * time.Second, Max: 300 * time.Second, MaxAttempts: 8}
	for attempts, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		want *= time.Second
		if got := b.After(attempts); got < want || got > want+want/10 {
			t.Errorf("after %d attempts: %s, want %s and up to a tenth more", attempts, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{Base: time.Duration(rapid.Int64Range(1, 1000).Draw(t, "base")) * time.Second}
		b.Max = b.Base + time.Duration(rapid.Int64Range(0, 100000).Draw(t, "more"))*time.Second
		if got := b.After(rapid.IntRange(0, 1000).Draw(t, "attempts")); got < b.Base || got > b.Max+b.Max/10 {
			t.Fatalf("%s is not from %s to %s and a tenth", got, b.Base, b.Max)
		}
	})
}

func TestDoubled(t *testing.T) {
	for _, tc := range []struct {
		first    time.Duration
		attempts int
		last     time.Duration
		want     time.Duration
	}{
		{time.Second, 1, time.Minute, time.Second},
		{time.Second, 3, time.Minute, 4 * time.Second},
		{3 * time.Second, 2, 7 * time.Second, 6 * time.Second},
		{3 * time.Second, 3, 7 * time.Second, 7 * time.Second},
		{time.Hour, 1, time.Minute, time.Minute},
		{time.Second, 1 << 40, time.Hour, time.Hour}, // without an overflow, and at once
	} {
		if got := Doubled(tc.first, tc.attempts, tc.last); got != tc.want {
			t.Errorf("%s, attempt %d, at most %s: got %s, want %s", tc.first, tc.attempts, tc.last, got, tc.want)
		}
	}
}
