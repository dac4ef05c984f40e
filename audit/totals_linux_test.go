package audit

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestTotalsAgree completes provisions and destroys of many engines in random orders, some
// twice, some never, many concurrently: a destroy counts only if its engine's provision
// succeeded.
func TestTotalsAgree(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		l, ctx := open(t, url), t.Context()
		outcomes := []string{OutcomeOK, OutcomeOK, "ENGINE_BUSY", "BOOT_TIMEOUT", ""} // "": a crash
		var provisions, destroys int64
		var work sync.WaitGroup
		errs := make(chan error, 2000)
		for i := range 60 {
			user, engine, provision := fmt.Sprint("u", i), fmt.Sprint("e", i), outcomes[rand.IntN(len(outcomes))]
			destroyed, warm := rand.IntN(3) > 0, rand.IntN(3) == 0
			if provision == OutcomeOK {
				provisions++
				if destroyed {
					destroys++
				}
			}
			end := func(product, action, outcome string) {
				id, err := l.Begin(ctx, Entry{ProductID: product, UserID: user, Action: action})
				errs <- err
				for range 1 + rand.IntN(2) {
					errs <- l.Complete(ctx, id, Completion{Outcome: outcome, EngineID: engine})
				}
			}
			work.Go(func() {
				if warm {
					end("warm", ActionProvision, OutcomeOK)
				}
				var both sync.WaitGroup
				if provision != "" {
					both.Go(func() { end("p1", ActionProvision, provision) })
				}
				if destroyed {
					both.Go(func() { end("p1", ActionDestroy, OutcomeOK) })
				}
				both.Wait()
			})
		}
		work.Wait()
		close(errs)
		for err := range errs {
			must(t, err)
		}
		n, err := l.Numbers(ctx, "p1")
		must(t, err)
		if n.TotalProvisions != provisions || n.TotalDestroys != destroys {
			t.Errorf("totals are %d provisions and %d destroys, want %d and %d", n.TotalProvisions, n.TotalDestroys, provisions, destroys)
		}
		var left int64
		must(t, l.db.reader.QueryRowContext(ctx, `SELECT COUNT(*) FROM audit_lives WHERE product_id = 'p1' AND provisioned = 1`).Scan(&left))
		if left != provisions-destroys {
			t.Errorf("%d engines are noted as provisioned, want %d", left, provisions-destroys)
		}
	})
}
