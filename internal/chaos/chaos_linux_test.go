// Package chaos is the fault suite: real agents on separate hosts, callers that use the
// service through both replicas, and faults in random order. At the end nothing is lost,
// duplicated or left behind, and every response was true.
//
//	go test ./internal/chaos -chaos.for=8m -chaos.seed=42 -v
package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// converge limits how long the service may take, after all faults are repaired, to
	// bring the registry into agreement with what exists.
	converge = 2 * time.Minute
	// calm is how long callers continue after the last fault.
	calm = 3 * time.Second
	// mostChecked and leastChecked limit how many calls of a user are checked: long
	// histories with many lost responses take the checker too long.
	mostChecked, leastChecked = 250, 80
)

func TestNothingIsLost(t *testing.T) {
	need(t)
	ctx := interrupted(t)
	number := *seed
	if number == 0 {
		number = rand.Uint64()
	}
	// This is printed even if the test is killed later.
	fmt.Fprintf(os.Stderr, "chaos: seed %d (again with -chaos.seed=%d -chaos.for=%s)\n", number, number, *faultsFor)
	r := startRig(ctx, t)
	w, err := newWatcher(r)
	if err != nil {
		t.Fatal(err)
	}
	load := &workload{rig: r}
	in := newInjector(t, r, w, load)
	faults := plan(number, *faultsFor)
	if *only != "" {
		if faults, err = repeated(*only, *faultsFor); err != nil {
			t.Fatal(err)
		}
	}

	working, rest := context.WithCancel(ctx)
	watching, blind := context.WithCancel(ctx)
	var calling, others sync.WaitGroup
	defer func() {
		rest()
		calling.Wait()
		blind()
		others.Wait()
	}()
	others.Go(func() { w.run(watching) })
	others.Go(func() { in.supervise(watching) })
	calling.Go(func() { load.run(ctx, working, number) })
	in.run(ctx, faults)
	if err := in.heal(ctx); err != nil {
		t.Fatalf("after the last fault: %v", err)
	}
	pause(ctx, calm)
	rest()
	calling.Wait()
	t.Log("all is healed and the callers are quiet")

	end := &ending{t: t, rig: r, watch: w, load: load}
	end.agreement(ctx, "after the faults")
	end.engines(ctx)
	end.agreement(ctx, "after every engine was started")
	end.calls(ctx)
	end.audit(ctx)
	end.destroyAll(ctx)
	end.agreement(ctx, "after every engine was destroyed")
	blind()
	others.Wait()
	for _, name := range slices.Sorted(maps.Keys(w.trouble)) {
		t.Error(name)
	}
	for _, err := range in.trouble {
		t.Errorf("beside the plan: %v", err)
	}
	for name := range r.urls {
		if err := r.scream(name); err != nil {
			t.Error(err)
		}
	}
	t.Log(summary(number, in, w, load))
	t.Logf("%d provisions were served by warm engines", end.warm)
	if t.Failed() {
		for name := range r.urls {
			t.Logf("the end of the log of %s:\n%s", name, r.tail(name))
		}
	}
}

// ending is what is checked when all faults are repaired.
type ending struct {
	t     *testing.T
	rig   *rig
	watch *watcher
	load  *workload
	warm  int // provisions that got a warm engine
}

// agreement waits until the registry agrees with what exists.
func (e *ending) agreement(ctx context.Context, when string) {
	e.t.Helper()
	tr, err := newTruth(e.rig, e.watch)
	if err != nil {
		e.t.Fatal(err)
	}
	began, before := time.Now(), ""
	err = eventually(ctx, converge, func() error {
		problems, err := tr.problems(ctx)
		if err == nil && len(problems) > 0 {
			err = fmt.Errorf("%s", strings.Join(problems, "\n"))
			if err.Error() != before {
				before = err.Error()
				e.t.Logf("%s, after %s:\n%s", when, time.Since(began).Round(100*time.Millisecond), before)
			}
		}
		return err
	})
	if err != nil {
		e.t.Errorf("%s, registry and world do not agree:\n%v", when, err)
		return
	}
	e.t.Logf("%s, registry and world agree within %s", when, time.Since(began).Round(100*time.Millisecond))
}

// engines reads every engine from both replicas, starts those that do not run, and compares
// their brains with what they acknowledged.
func (e *ending) engines(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	gate := make(chan struct{}, callers)
	for _, p := range e.rig.products {
		for _, user := range p.users {
			wg.Go(func() {
				gate <- struct{}{}
				defer func() { <-gate }()
				if err := e.engine(ctx, p, user); err != nil {
					e.t.Errorf("engine of %s: %v", user, err)
				}
			})
		}
	}
}

func (e *ending) engine(ctx context.Context, p *product, user string) error {
	return eventually(ctx, time.Minute, func() error {
		for i := range replicas {
			c := &call{kind: get, product: p.Slug, user: user}
			got := e.load.do(ctx, p, c, i)
			switch {
			case c.answer.code == "ENGINE_NOT_FOUND":
				continue
			case !c.answer.ok():
				return fmt.Errorf("%s", c)
			case got.Status != "running":
				c = &call{kind: start, product: p.Slug, user: user}
				e.load.do(ctx, p, c, i)
				return fmt.Errorf("it was %s; %s: %s", got.Status, c, c.answer.err)
			}
			if err := e.load.brains.remembers(ctx, got); err != nil {
				return err
			}
		}
		return nil
	})
}

// calls checks that all responses were true, and that no id or key was given to two users.
func (e *ending) calls(context.Context) {
	owner := map[string]string{}
	all := e.load.history.all()
	for _, c := range all {
		for _, word := range []string{c.answer.engineID, c.answer.key} {
			who := c.product + "/" + c.user
			if word != "" && owner[word] != "" && owner[word] != who {
				e.t.Errorf("%s and %s got the same id or key (%s)", owner[word], who, short(word))
			}
			owner[word] = who
		}
	}
	var wg sync.WaitGroup
	gate := make(chan struct{}, 2)
	for name, calls := range byUser(all) {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			err, checked := errUndecided, len(calls)
			if checked <= mostChecked {
				err = linearizable(calls)
			}
			for errors.Is(err, errUndecided) && checked > leastChecked {
				if checked /= 2; checked <= mostChecked {
					err = linearizable(before(calls, checked))
				}
			}
			if err != nil {
				e.t.Errorf("user %s: %v", name, err)
			} else if checked < len(calls) {
				e.t.Logf("user %s: the first %d of %d calls were checked; more take too long", name, checked, len(calls))
			}
		})
	}
	wg.Wait()
}

// audit checks that every change has its row.
func (e *ending) audit(ctx context.Context) {
	calls := map[string][]*call{}
	for _, c := range e.load.history.all() {
		calls[c.product] = append(calls[c.product], c)
	}
	for _, p := range e.rig.products {
		rows, err := e.rig.auditLog(ctx, p)
		if err != nil {
			e.t.Error(err)
			continue
		}
		for _, r := range rows {
			if r.Metadata["warm"] == true && r.Outcome == "ok" {
				e.warm++
			}
		}
		for _, problem := range audited(calls[p.Slug], rows) {
			e.t.Errorf("audit log of %s: %s", p.Slug, problem)
		}
	}
}

// destroyAll destroys every engine.
func (e *ending) destroyAll(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	gate := make(chan struct{}, callers)
	for _, p := range e.rig.products {
		for i, user := range p.users {
			wg.Go(func() {
				gate <- struct{}{}
				defer func() { <-gate }()
				err := eventually(ctx, time.Minute, func() error {
					c := &call{kind: destroy, product: p.Slug, user: user}
					e.load.do(ctx, p, c, i%replicas)
					if c.answer.ok() || c.answer.code == "ENGINE_NOT_FOUND" {
						return nil
					}
					return fmt.Errorf("%s: %s", c, c.answer.err)
				})
				if err != nil {
					e.t.Error(err)
				}
			})
		}
	}
}

// summary describes the run in numbers.
func summary(number uint64, in *injector, w *watcher, load *workload) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d\n", number)
	b.WriteString("faults:")
	for _, how := range slices.Sorted(maps.Keys(in.counts)) {
		fmt.Fprintf(&b, " %s %d", how, in.counts[how])
	}
	outcomes, took := map[kind]map[string]int{}, map[kind][]time.Duration{}
	for _, c := range load.history.all() {
		if outcomes[c.kind] == nil {
			outcomes[c.kind] = map[string]int{}
		}
		outcomes[c.kind][c.answer.outcome()]++
		took[c.kind] = append(took[c.kind], c.ended.Sub(c.began))
	}
	b.WriteString("\ncalls:\n")
	for _, k := range []kind{provision, start, stop, rotate, destroy, admit, get} {
		fmt.Fprintf(&b, "  %-11s", k)
		for _, outcome := range slices.Sorted(maps.Keys(outcomes[k])) {
			fmt.Fprintf(&b, " %s %d,", outcome, outcomes[k][outcome])
		}
		fmt.Fprintf(&b, "  response times: %s\n", quantiles(took[k]))
	}
	acked := 0
	for _, list := range load.brains.told {
		for _, x := range list {
			if x.acked {
				acked++
			}
		}
	}
	fmt.Fprintf(&b, "brain writes acknowledged: %d, of %d engines\n", acked, len(load.brains.told))
	fmt.Fprintf(&b, "take-over of the lead after SIGKILL of the leader: %s\n", quantiles(w.takeover))
	fmt.Fprintf(&b, "end of a half-done operation after SIGKILL of its owner: %s\n", quantiles(w.recovery))
	fmt.Fprintf(&b, "a crash seen in the row: %s", quantiles(w.crashes))
	return b.String()
}
