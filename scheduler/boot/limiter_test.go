package boot

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// always keeps a waiting caller waiting.
func always() error { return nil }

func TestLimiter(t *testing.T) {
	var g Limiter
	var leaves []func()
	for range FirstBoots {
		leave, err := g.Enter(t.Context(), "storm", always)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	// Full: a caller waits, and leaves when its request ends. Others get in.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Enter(gone, "storm", always); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Or when waiting has become pointless.
	away := errors.New("away")
	looks := 0
	if _, err := g.Enter(t.Context(), "storm", func() error {
		if looks++; looks > 1 {
			return away
		}
		return nil
	}); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
	leave, err := g.Enter(t.Context(), "calm", always)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			leave, err := g.Enter(t.Context(), "storm", always)
			if err != nil {
				t.Error(err)
				return
			}
			leave()
		})
	}
	for _, leave := range leaves {
		leave()
	}
	wg.Wait()
	if len(g.open) != 0 {
		t.Errorf("%d limits are kept for nobody", len(g.open))
	}
}

// TestLimiterLimit: boots that are done in time raise the limit, up to a maximum; of the
// late boots that began before the limit was lowered, only the first lowers it.
func TestLimiterLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Limiter
		leave, err := g.Enter(t.Context(), "storm", always)
		if err != nil {
			t.Fatal(err)
		}
		want := func(limit int) {
			t.Helper()
			if got := g.open["storm"].limit; got != limit {
				t.Errorf("%d concurrent boots, want %d", got, limit)
			}
		}
		began := time.Now()
		for range mostBoots {
			g.Booted("storm", began, grow)
		}
		want(mostBoots)
		time.Sleep(time.Second)
		g.Booted("storm", began, shrink)
		want(mostBoots * 3 / 4)
		time.Sleep(time.Second)
		g.Booted("storm", began, shrink)
		g.Booted("storm", began, grow)
		want(mostBoots * 3 / 4)
		for range mostBoots {
			time.Sleep(time.Second)
			g.Booted("storm", time.Now(), shrink)
		}
		want(fewestBoots)
		g.Booted("calm", time.Now(), grow) // for no caller: a restart
		leave()
		if len(g.open) != 0 {
			t.Errorf("%d limits are kept for nobody", len(g.open))
		}
	})
}

// TestLimiterWaiters: a caller that leaves while it waits, or at the moment of its turn,
// passes its place to the next.
func TestLimiterWaiters(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			var (
				g      Limiter
				wg     sync.WaitGroup
				inside int
			)
			for range 100 {
				patience := time.Duration(rand.N(20)) * time.Second
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					leave, err := g.Enter(ctx, "p", always)
					if err != nil {
						return
					}
					defer leave()
					g.mu.Lock()
					inside++
					if inside > FirstBoots {
						t.Errorf("%d inside", inside)
					}
					g.mu.Unlock()
					time.Sleep(time.Duration(1+rand.N(5)) * time.Second)
					g.mu.Lock()
					inside--
					g.mu.Unlock()
				})
			}
			wg.Wait()
			if len(g.open) != 0 {
				t.Error("a limit is kept for nobody")
			}
		})
	}
}

// TestLimiterOfABurst has 300 concurrent callers whose nodes do the work of a fixed number
// of boots per second, shared by the boots in progress: from nodes that would take longer
// than the boot timeout for mostBoots to fast ones.
func TestLimiterOfABurst(t *testing.T) {
	const mayTake, callers = time.Minute, 300
	for name, c := range map[string]struct {
		perSecond, slower float64 // boots per second, and the decrease for each engine that runs
		most              time.Duration
	}{
		"Fast":       {20, 0, 20 * time.Second},
		"Slow":       {1, 0, 6 * time.Minute},
		"Slower":     {0.4, 0, 14 * time.Minute}, // 32 concurrent boots would take 80 s
		"EverSlower": {1, 0.0025, 15 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					g             Limiter
					mu            sync.Mutex
					booting, runs int
					late          int
					wg            sync.WaitGroup
				)
				const tick = 50 * time.Millisecond
				began := time.Now()
				for range callers {
					wg.Go(func() {
						leave, err := g.Enter(t.Context(), "p", always)
						if err != nil {
							t.Error(err)
							return
						}
						defer leave()
						began := time.Now()
						mu.Lock()
						booting++
						mu.Unlock()
						for done := 0.0; done < 1; {
							time.Sleep(tick)
							mu.Lock()
							done += tick.Seconds() * (c.perSecond - c.slower*float64(runs)) / float64(booting)
							mu.Unlock()
						}
						mu.Lock()
						booting--
						runs++
						took := time.Since(began)
						if took > mayTake {
							late++
						}
						mu.Unlock()
						g.Booted("p", began, CongestionOf(took, mayTake, 0))
					})
				}
				wg.Wait()
				if took := time.Since(began); late > 0 || took > c.most {
					t.Errorf("%d of %d boots took too long; all were done after %s, want %s at most", late, callers, took, c.most)
				}
			})
		})
	}
}

func TestCongestionOf(t *testing.T) {
	for name, c := range map[string]struct {
		took, expected time.Duration
		want           congestion
	}{
		"Quick":          {took: 10 * time.Second, want: grow},
		"NotQuick":       {took: 11 * time.Second, want: keep},
		"NotLate":        {took: 20 * time.Second, want: keep},
		"Late":           {took: 21 * time.Second, want: shrink},
		"LateForIt":      {took: 31 * time.Second, expected: 15 * time.Second, want: shrink},
		"ItsNature":      {took: 50 * time.Second, expected: 25 * time.Second, want: grow},
		"NotInTime":      {took: time.Minute, want: shrink},
		"NeverInTime":    {took: time.Minute, expected: 40 * time.Second, want: shrink},
		"LongForAnother": {took: 15 * time.Second, expected: time.Second, want: keep},
	} {
		t.Run(name, func(t *testing.T) {
			if got := CongestionOf(c.took, time.Minute, c.expected); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
