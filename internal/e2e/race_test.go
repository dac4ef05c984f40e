package e2e

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// TestDestroyRacesOtherCalls has a DELETE follow every call that begins an operation: a few
// milliseconds later, or at any time before it is answered. Each call hears its own end or that the engine is busy, every audit
// row has its outcome, nothing is left, and the totals agree.
func TestDestroyRacesOtherCalls(t *testing.T) {
	t.Parallel()
	r := startService(t, shared, map[string]string{"ORCH_VOLUME_POOL": "8"})
	roomy, huge := r.product(t, nil), r.product(t, map[string]any{"memory_mb": 900_000})
	ctx := t.Context()
	provision := func(c *client.Client, u string) error { return second(c.Provision(ctx, u, "")) }
	admitted := func(c *client.Client, u string) error {
		_, err := admit(ctx, c, u, true, true)
		return err
	}
	stopped := func(c *client.Client, u string) error {
		if err := provision(c, u); err != nil {
			return err
		}
		return second(c.Stop(ctx, u))
	}
	kinds := map[string]struct {
		c       *client.Client
		prepare func(*client.Client, string) error
		call    func(*client.Client, string) error
		rounds  int
	}{
		"provision without room": {huge, nil, provision, 10},
		"admit without room":     {huge, nil, admitted, 10},
		"provision":              {roomy, nil, provision, 6},
		"admit":                  {roomy, nil, admitted, 6},
		"start":                  {roomy, stopped, func(c *client.Client, u string) error { return second(c.Start(ctx, u)) }, 3},
		"stop":                   {roomy, provision, func(c *client.Client, u string) error { return second(c.Stop(ctx, u)) }, 3},
		"rotate":                 {roomy, provision, func(c *client.Client, u string) error { return second(c.RotateKey(ctx, u)) }, 3},
	}
	// An engine that is gone, or not there yet, is not found.
	may := map[string][]string{
		"call":   {"ok", "409 ENGINE_BUSY", "404 ENGINE_NOT_FOUND"},
		"delete": {"ok", "404 ENGINE_NOT_FOUND"},
	}
	var all sync.WaitGroup
	for name, kind := range kinds {
		all.Go(func() {
			var took time.Duration // by the call alone, on this machine
			for i := range kind.rounds {
				user := fmt.Sprintf("%s %d", name, i)
				if kind.prepare != nil {
					if err := kind.prepare(kind.c, user); err != nil {
						t.Errorf("%s: %v", user, err)
						return
					}
				}
				if i == 0 {
					began := time.Now()
					_ = kind.call(kind.c, user)
					took = time.Since(began)
					_ = second(kind.c.Destroy(ctx, user))
					continue
				}
				delay := time.Duration(1+i*14/kind.rounds) * time.Millisecond
				if i%2 == 0 {
					delay = took * time.Duration(i) / time.Duration(kind.rounds)
				}
				got := map[string]string{}
				var mu sync.Mutex
				outcomes(2, func(n int) error {
					who, err := "call", error(nil)
					if n == 1 {
						who = "delete"
						<-time.After(delay)
						err = second(kind.c.Destroy(ctx, user))
					} else {
						err = kind.call(kind.c, user)
					}
					mu.Lock()
					defer mu.Unlock()
					got[who] = outcomeOf(err)
					return nil
				})
				for who, answer := range got {
					if !slices.Contains(may[who], answer) && (who != "call" || kind.c != huge || answer != "503 CAPACITY_EXHAUSTED") {
						t.Errorf("%s, DELETE after %s: the %s got %s", user, delay, who, answer)
					}
				}
				if err := second(kind.c.Destroy(ctx, user)); err != nil && !errors.Is(err, client.ErrEngineNotFound) {
					t.Errorf("%s: %v", user, err)
				}
			}
		})
	}
	all.Wait()
	for _, c := range []*client.Client{roomy, huge} {
		rows := 0
		for row, err := range c.AllAudit(ctx, client.AuditFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			if rows++; row.Outcome == "interrupted" || row.EngineID == "" && row.Outcome == "ENGINE_BUSY" {
				t.Errorf("audit row %+v", row)
			}
		}
		numbers, err := c.Metrics(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if numbers.TotalProvisions != numbers.TotalDestroys || rows == 0 {
			t.Errorf("%d audit rows, %d provisions, %d destroys, and no engine is left", rows, numbers.TotalProvisions, numbers.TotalDestroys)
		}
	}
}
