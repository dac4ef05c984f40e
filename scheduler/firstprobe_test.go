package scheduler

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFirstProbe(t *testing.T) {
	const ms = time.Millisecond
	// learned is a prober that saw starts of an image that told their uptime.
	learned := func(starts ...time.Duration) *firstProbe {
		f := &firstProbe{unknown: containerDelay}
		for _, took := range starts {
			began := time.Now().Add(-5 * time.Second)
			f.learn("image", began, began.Add(took))
		}
		return f
	}
	for _, c := range []struct {
		name   string
		starts []time.Duration
		want   time.Duration
	}{
		{"Unknown", nil, containerDelay},
		{"FewStartsNeverHurry", []time.Duration{50 * ms, 60 * ms}, containerDelay},
		{"FewSlowStarts", []time.Duration{500 * ms}, 500*ms + firstMargin},
		{"SlowestCounts", []time.Duration{100 * ms, 180 * ms, 120 * ms}, 180*ms + firstMargin},
		{"Capped", []time.Duration{3 * time.Second, 100 * ms, 100 * ms}, maxFirstDelay},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := learned(c.starts...).delay("image"); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	t.Run("SlowStartIsForgotten", func(t *testing.T) {
		f := learned(700 * ms)
		for range startsKept {
			began := time.Now().Add(-time.Second)
			f.learn("image", began, began.Add(100*ms))
		}
		if got, want := f.delay("image"), 100*ms+firstMargin; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("PerImage", func(t *testing.T) {
		if got := learned(500 * ms).delay("another"); got != containerDelay {
			t.Errorf("got %s, want %s", got, containerDelay)
		}
	})
	t.Run("NothingToLearn", func(t *testing.T) {
		f := &firstProbe{}
		f.learn("image", time.Now().Add(-time.Second), time.Time{})
		if got := f.delay("image"); got != 0 {
			t.Errorf("got %s, want 0", got)
		}
	})
}

// Whatever engines say of their uptime, no delay is negative or beyond the cap.
func TestFirstProbeBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &firstProbe{unknown: containerDelay}
		for range rapid.IntRange(0, 40).Draw(t, "starts") {
			began := time.Now().Add(-time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "took")))
			started := time.Time{}
			if rapid.Bool().Draw(t, "told") {
				started = time.Now().Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "started")))
			}
			f.learn("image", began, started)
			if d := f.delay("image"); d < firstMargin || d > maxFirstDelay {
				t.Fatalf("delay %s", d)
			}
			if kept := len(f.starts["image"]); kept > startsKept {
				t.Fatalf("%d starts kept", kept)
			}
		}
	})
}
