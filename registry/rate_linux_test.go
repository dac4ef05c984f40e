package registry

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// limitersOf returns n limiters on one registry, as on n replicas.
func limitersOf(t *testing.T, prefix string, n int) []*Limiter {
	t.Helper()
	var all []*Limiter
	for range n {
		all = append(all, New(consulClient(t), prefix).NewLimiter())
	}
	return all
}

func TestLimiter(t *testing.T) {
	// storm calls all limiters concurrently for a while and returns how many calls were
	// allowed and refused.
	storm := func(t *testing.T, all []*Limiter, product string, rpm, callers int, long time.Duration) (allowed, refused int64, took time.Duration) {
		t.Helper()
		var yes, no atomic.Int64
		var wg sync.WaitGroup
		began := time.Now()
		for i := range callers {
			wg.Go(func() {
				for time.Since(began) < long {
					v, err := all[i%len(all)].Allow(t.Context(), product, rpm)
					switch {
					case err != nil:
						t.Error(err)
						return
					case v.Allowed:
						yes.Add(1)
						if v.Limit != rpm || v.Remaining < 0 || v.Reset < 0 {
							t.Errorf("verdict %+v", v)
						}
					default:
						no.Add(1)
						if v.RetryAfter < time.Second || v.Remaining != 0 {
							t.Errorf("verdict %+v", v)
						}
						pauseABit(t.Context())
					}
				}
			})
		}
		wg.Wait()
		return yes.Load(), no.Load(), time.Since(began)
	}
	for _, c := range []struct {
		name    string
		rpm     int
		callers int
		long    time.Duration
		atLeast float64 // of what the bucket grants
	}{
		{"Six", 6, 9, 2 * time.Second, 1},
		{"Sixty", 60, 30, 3 * time.Second, 0.6},
		{"SixtyThousand", 60_000, 60, 3 * time.Second, 0.5},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := limitersOf(t, prefix(t), 3)
			allowed, refused, took := storm(t, all, "product", c.rpm, c.callers, c.long)
			most := burst(c.rpm) + took.Minutes()*float64(c.rpm)
			if float64(allowed) > most || refused > 0 && float64(allowed) < c.atLeast*float64(int(most)) {
				t.Errorf("%d allowed, %d refused in %s; the bucket grants %.1f", allowed, refused, took, most)
			}
			t.Logf("%d allowed, %d refused of %.0f in %s", allowed, refused, most, took)
		})
	}
	t.Run("Zero", func(t *testing.T) {
		v, err := limitersOf(t, prefix(t), 1)[0].Allow(t.Context(), "product", 0)
		if err != nil || v.Allowed || v.RetryAfter < time.Second {
			t.Errorf("got %+v, %v", v, err)
		}
	})
	t.Run("PolicyHoldsAtOnce", func(t *testing.T) {
		l := limitersOf(t, prefix(t), 1)[0]
		for rpm, want := range map[int]bool{600: true, 0: false} {
			if v, err := l.Allow(t.Context(), "product", rpm); err != nil || v.Allowed != want {
				t.Errorf("%d: %+v, %v", rpm, v, err)
			}
		}
		if v, err := l.Allow(t.Context(), "product", 6000); err != nil || !v.Allowed || v.Limit != 6000 {
			t.Errorf("got %+v, %v", v, err)
		}
	})
	t.Run("CallerLeaves", func(t *testing.T) {
		l := limitersOf(t, prefix(t), 1)[0]
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 {
			_, _ = l.Allow(gone, "product", 6000)
		}
		if v, err := l.Allow(t.Context(), "product", 6000); err != nil || !v.Allowed {
			t.Errorf("got %+v, %v", v, err)
		}
	})
}

// A bucket whose time is half an hour ahead, left by a replica with a wrong clock, still
// refills at its rate.
func TestLimiterAfterAClockAhead(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"ahead": 30 * time.Minute, "behind": -30 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			all := limitersOf(t, prefix(t), 2)
			s := all[0].store
			left := bucket{Tokens: 0, At: time.Now().Add(ahead).UTC(), RPM: 60}
			if _, _, err := s.txn(t.Context(), consul.KVTxnOps{{Verb: consul.KVSet, Key: s.rateKey("product"), Value: encode(left)}}); err != nil {
				t.Fatal(err)
			}
			began, calls := time.Now(), 0
			for time.Since(began) < 3500*time.Millisecond {
				for _, l := range all {
					v, err := l.Allow(t.Context(), "product", 60)
					if err != nil {
						t.Fatal(err)
					}
					if v.Allowed {
						calls++
					}
				}
				pauseABit(t.Context())
			}
			if most := int(time.Since(began)/time.Second) + 3; calls < 2 || calls > most {
				t.Errorf("%d calls were let through in %s at one a second, want 2 to %d", calls, time.Since(began), most)
			}
		})
	}
}

// pauseABit keeps a refused caller from spinning.
func pauseABit(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Millisecond):
	}
}
