package boot

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/septemberai/orch/internal/pause"
)

func TestAwaitUsable(t *testing.T) {
	t.Run("FailsAtFirst", func(t *testing.T) {
		var asked atomic.Int32
		url := engineStub(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) < 5 {
				says(503, `{"status":"starting"}`)(w, r)
				return
			}
			says(200, `{"status":"ok"}`)(w, r)
		})
		if NewBoots(NewProber(time.Second, nil)).AwaitUsable(t.Context(), url, proves(testKey), nil) != nil {
			t.Error("not usable")
		}
		if n := asked.Load(); n != 5 {
			t.Errorf("probed %d times, want 5", n)
		}
	})
	// A second probe overtakes one that hangs: the engine may have been probed just before
	// it could respond.
	t.Run("FirstProbeHangs", func(t *testing.T) {
		var asked atomic.Int32
		url := engineStub(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				<-r.Context().Done()
				return
			}
			says(200, `{"status":"ok"}`)(w, r)
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if NewBoots(NewProber(time.Minute, nil)).AwaitUsable(ctx, url, proves(testKey), nil) != nil {
			t.Error("not usable")
		}
	})
	t.Run("HangsForEver", func(t *testing.T) {
		var inFlight, most atomic.Int32
		url := engineStub(t, func(_ http.ResponseWriter, r *http.Request) {
			if n := inFlight.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-r.Context().Done()
			inFlight.Add(-1)
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			for deadline := time.Now().Add(20 * time.Second); most.Load() < maxProbes && time.Now().Before(deadline); {
				pause.For(ctx, time.Millisecond)
			}
			pause.For(ctx, 3*overtakeAfter) // time for one too many
		}()
		if NewBoots(NewProber(time.Minute, nil)).AwaitUsable(ctx, url, proves(testKey), nil) == nil {
			t.Error("usable")
		}
		if got := most.Load(); got != maxProbes {
			t.Errorf("%d concurrent probes, want %d", got, maxProbes)
		}
	})
	t.Run("NobodyListens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		url := "http://" + l.Addr().String()
		_ = l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if NewBoots(NewProber(time.Second, nil)).AwaitUsable(ctx, url, proves(testKey), nil) == nil {
			t.Error("usable")
		}
	})
}

// Whatever time is expected, a boot is probed in time: the first probe comes before the
// expected time, probes are close together around it, and a late engine is noticed at most
// an eighth of its lateness later.
func TestProbeSchedule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		expected := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "expected"))
		took := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "took"))
		chance := rapid.Float64Range(0, 1)
		asked, probes := spread(firstProbe(expected), 0, chance.Draw(t, "first")), 1
		if asked > expected*8/10 {
			t.Fatalf("the first probe comes at %s", asked)
		}
		first := asked
		took = max(took, first)
		for asked < took {
			asked += spread(nextProbe(asked, expected), 1, chance.Draw(t, "chance"))
			probes++
		}
		late := asked - took
		most := min(max(expected/40, 3*time.Millisecond)+max(took-expected, 0)/8, coarsestProbe*5/4)
		if late > most {
			t.Errorf("noticed %s after %s, expected after %s: %s late", asked, took, expected, late)
		}
		// At even intervals up to the expected time, then at ever longer ones.
		even := max(min(took, expected)-first, 0) / (nextProbe(0, expected) * 3 / 4)
		if most := 300 + int(even) + int(took/(coarsestProbe/2)); probes > most {
			t.Errorf("%d probes for a boot of %s", probes, took)
		}
	})
}

// However many boots are in progress, together they do not exceed their share of probes.
func TestBootsShareProbes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		boots := rapid.Int64Range(1, 10_000).Draw(t, "boots")
		d := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
		got := spread(d, boots, rapid.Float64Range(0, 1).Draw(t, "chance"))
		if least := time.Duration(boots) * bootShare * 3 / 4; got < least || got < d*3/4 {
			t.Errorf("%s with %d boots", got, boots)
		}
		if most := max(d, time.Duration(boots)*bootShare) * 5 / 4; got > most {
			t.Errorf("%s with %d boots, want at most %s", got, boots, most)
		}
	})
}

// The expected time stays within the observed times, drops at once when boots get faster,
// and does not rise after a few slow ones.
func TestLowTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		times := rapid.SliceOfN(rapid.Int64Range(1, int64(time.Minute)), 1, 50).Draw(t, "times")
		low, least, most := time.Duration(0), time.Minute, time.Duration(0)
		for _, took := range times {
			before, took := low, time.Duration(took)
			low, least, most = lowTime(low, took), min(least, took), max(most, took)
			if low < least || low > most {
				t.Fatalf("%s after %v", low, times)
			}
			if before > 0 && (took < before && low > (before+took)/2+1 || took > before && low > before+min((took-before)/20, before/50)) {
				t.Fatalf("%s after %s and %s", low, before, took)
			}
		}
	})
	low := time.Duration(0)
	for i := range 1000 {
		took := 100 * time.Millisecond
		if i%10 != 0 {
			took = 200 * time.Millisecond
		}
		low = lowTime(low, took)
	}
	if low < 100*time.Millisecond || low > 160*time.Millisecond {
		t.Errorf("a tenth of the boots takes 100 ms, the others 200: the expected time is %s", low)
	}
}

func TestBootTimesAreBounded(t *testing.T) {
	var times bootTimes
	for i := range 3 * maxBootKinds {
		times.learn(Kind{Image: fmt.Sprint(i)}, time.Second, true)
	}
	newest := Kind{Image: fmt.Sprint(3*maxBootKinds - 1)}
	if len(times.took) != maxBootKinds || times.expected(newest) != time.Second {
		t.Errorf("%d kinds, the newest is %s", len(times.took), times.expected(newest))
	}
	if times.expected(Kind{newest.Image, true}) != 0 {
		t.Error("a boot of a new brain is expected to be as one of an old")
	}
	times.learn(newest, time.Minute, false)
	if got := times.expected(newest); got != time.Second {
		t.Errorf("%s are expected after a slow boot in a burst", got)
	}
	times.learn(newest, time.Second/2, false)
	if got := times.expected(newest); got >= time.Second {
		t.Errorf("%s are expected after a fast boot in a burst", got)
	}
}

// The duration of a boot is remembered, and the next boot of its kind is not probed before.
func TestFirstProbeIsTimed(t *testing.T) {
	var asked atomic.Int64
	url := engineStub(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		says(200, `{"status":"ok"}`)(w, r)
	})
	b, kind := NewBoots(NewProber(time.Second, nil)), Kind{Image: "image"}
	if b.AwaitUsable(t.Context(), url, proves(testKey), &kind) != nil || b.times.expected(kind) == 0 {
		t.Fatal("nothing was learnt")
	}
	b.times.took[kind] = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if before := asked.Load(); b.AwaitUsable(ctx, url, proves(testKey), &kind) == nil || asked.Load() != before {
		t.Error("it was probed long before it can be up")
	}
	if b.AwaitUsable(t.Context(), url, proves(testKey), nil) != nil || b.times.expected(kind) != time.Hour {
		t.Error("one that may already run was waited for, or counted as a boot")
	}
}

// Hanging engines do not keep the others waiting for long, and there are never more probes
// than engines.
func TestHangingBootsLeaveRoom(t *testing.T) {
	answer := make(chan struct{})
	var hung atomic.Int64
	url := engineStub(t, func(_ http.ResponseWriter, r *http.Request) {
		hung.Add(1)
		select {
		case <-r.Context().Done():
		case <-answer:
		}
	})
	healthy := engineStub(t, says(200, `{"status":"ok"}`))
	b := NewBoots(NewProber(time.Hour, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	var boots sync.WaitGroup
	for range 2 * bootProbes {
		boots.Go(func() { _ = b.AwaitUsable(ctx, url, proves(testKey), nil) })
	}
	for hung.Load() <= bootProbes { // more probes hang than there are turns
		if !pause.For(ctx, time.Millisecond) {
			t.Fatalf("%d probes hang", hung.Load())
		}
	}
	if b.AwaitUsable(ctx, healthy, proves(testKey), nil) != nil {
		t.Error("a healthy engine got no turn")
	}
	cancel()
	close(answer)
	boots.Wait()
	if len(b.slots) != 0 || b.boots.Load() != 0 {
		t.Errorf("%d turns and %d boots are left", len(b.slots), b.boots.Load())
	}
}
