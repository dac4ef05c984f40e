package admission

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// raced is a call, and what ends its user's engine meanwhile.
type raced struct {
	name    string
	c       *client.Client
	prepare func(*client.Client, string) error // nil: there is no engine before
	call    func(*client.Client, string) error
	// end destroys or stops the engine, and returns the outcomes.
	end    func(c *client.Client, user string, round int, called <-chan struct{}) map[string]int
	rounds int
}

// TestDestroyRacesOtherCalls sends a DELETE, or a stop, while each kind of call that begins
// an operation is in progress. Each call returns its own outcome or that the engine is
// busy, every audit row has its outcome, nothing remains, and the totals agree.
func TestDestroyRacesOtherCalls(t *testing.T) {
	t.Parallel()
	r := harness.StartService(t, harness.Shared, map[string]string{"ORCH_VOLUME_POOL": "8"})
	roomy, huge := r.Product(t, nil), r.Product(t, map[string]any{"memory_mb": 900_000})
	ctx := t.Context()
	provision := func(c *client.Client, u string) error { return harness.ErrOf(c.Provision(ctx, u, "")) }
	admitted := func(c *client.Client, u string) error {
		_, err := harness.Admit(ctx, c, u, true, true)
		return err
	}
	start := func(c *client.Client, u string) error { return harness.ErrOf(c.Start(ctx, u)) }
	stop := func(c *client.Client, u string) error { return harness.ErrOf(c.Stop(ctx, u)) }
	rotate := func(c *client.Client, u string) error { return harness.ErrOf(c.RotateKey(ctx, u)) }
	stopped := func(c *client.Client, u string) error { return errors.Join(provision(c, u), stop(c, u)) }
	until := func(called <-chan struct{}, try func() bool) {
		for !try() {
			select {
			case <-called:
				return
			default:
			}
		}
	}
	// As soon as there is a row: its operation is written, but not launched yet.
	atOnce := func(c *client.Client, u string, _ int, called <-chan struct{}) map[string]int {
		return harness.Outcomes(3, func(int) (err error) {
			until(called, func() bool {
				err = harness.ErrOf(c.Destroy(ctx, u))
				return !errors.Is(err, client.ErrEngineNotFound)
			})
			return err
		})
	}
	// While a provision that found no capacity removes itself.
	undoing := func(c *client.Client, u string, _ int, called <-chan struct{}) map[string]int {
		until(called, func() bool {
			e, err := c.Engine(ctx, u)
			return err == nil && e.Status == "destroying"
		})
		return harness.Outcomes(1, func(int) error { return harness.ErrOf(c.Destroy(ctx, u)) })
	}
	later := func(c *client.Client, u string, round int, _ <-chan struct{}) map[string]int {
		<-time.After(time.Duration(3+4*round) * time.Millisecond)
		return harness.Outcomes(1, func(int) error { return harness.ErrOf(c.Destroy(ctx, u)) })
	}
	stoppedLater := func(c *client.Client, u string, round int, _ <-chan struct{}) map[string]int {
		<-time.After(time.Duration(3+8*round) * time.Millisecond)
		return harness.Outcomes(1, func(int) error { return stop(c, u) })
	}
	kinds := []raced{
		{"start and stop", roomy, stopped, start, stoppedLater, 2},
		{"rotate and stop", roomy, provision, rotate, stoppedLater, 2},
		{"admit and stop", roomy, nil, admitted, stoppedLater, 2},
		{"provision without room", huge, nil, provision, atOnce, 8},
		{"admit without room", huge, nil, admitted, undoing, 4},
		{"provision", roomy, nil, provision, atOnce, 8},
		{"admit", roomy, nil, admitted, later, 3},
		{"start", roomy, stopped, start, later, 3},
		{"stop", roomy, provision, stop, later, 3},
		{"rotate", roomy, provision, rotate, later, 3},
	}
	var all sync.WaitGroup
	for _, kind := range kinds {
		all.Go(func() {
			for round := range kind.rounds {
				user := fmt.Sprintf("%s %d", kind.name, round)
				if kind.prepare != nil {
					if err := kind.prepare(kind.c, user); err != nil {
						t.Errorf("%s: %v", user, err)
						return
					}
				}
				kind.race(t, user, round)
				if err := harness.ErrOf(kind.c.Destroy(ctx, user)); err != nil && !errors.Is(err, client.ErrEngineNotFound) {
					t.Errorf("%s: %v", user, err)
				}
			}
		})
	}
	all.Wait()
	for _, c := range []*client.Client{roomy, huge} {
		wantAudited(t, c)
	}
}

// race makes the call and ends its engine meanwhile.
func (k raced) race(t *testing.T, user string, round int) {
	called, got := make(chan struct{}), ""
	go func() {
		defer close(called)
		got = harness.OutcomeOf(k.call(k.c, user))
	}()
	ended := k.end(k.c, user, round, called)
	<-called
	// An engine that was destroyed, or does not exist yet, is not found.
	may := []string{"ok", "409 ENGINE_BUSY", "404 ENGINE_NOT_FOUND", "503 CAPACITY_EXHAUSTED"}
	if !slices.Contains(may[:3], got) && (k.prepare != nil || got != may[3]) && got != "409 ENGINE_NOT_RUNNING" {
		t.Errorf("%s: the call got %s", user, got)
	}
	for answer := range ended {
		stopRefused := strings.HasSuffix(k.name, "and stop") && (answer == "409 ENGINE_BUSY" || answer == "409 ENGINE_NOT_RUNNING")
		if answer != "ok" && answer != "404 ENGINE_NOT_FOUND" && !stopRefused {
			t.Errorf("%s: what ended the engine got %s", user, answer)
		}
	}
}

// wantAudited fails unless every audit row of a product without engines gets its outcome,
// and the totals agree.
func wantAudited(t *testing.T, c *client.Client) {
	t.Helper()
	rows := 0
	harness.Eventually(t, "all is audited", func() error {
		rows = 0
		for row, err := range c.AllAudit(t.Context(), client.AuditFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			if rows++; row.Outcome == "interrupted" || row.EngineID == "" && row.Outcome == "ENGINE_BUSY" {
				return fmt.Errorf("audit row %+v", row)
			}
		}
		return nil
	})
	numbers, err := c.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if numbers.TotalProvisions != numbers.TotalDestroys || rows == 0 {
		t.Errorf("%d audit rows, %d provisions, %d destroys, but no engine exists", rows, numbers.TotalProvisions, numbers.TotalDestroys)
	}
}
