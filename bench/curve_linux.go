package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/septemberai/orch/client"
)

// curveAdmits is how users are let in at each level: for long enough that what
// happens every few seconds does not decide.
var curveAdmits = openLoad{usual.perSecond, 30 * time.Second}

const (
	// curveFillers provision at the same time while a level is filled.
	curveFillers = 12
	// curveSlowest is how many provisions per second a level must reach to be
	// filled: its time follows from that.
	curveSlowest = 4
	// curveSingles is how many provisions are measured, one at a time, at the end
	// of each level.
	curveSingles = 100
	// curveErrors ends a level that does not go on.
	curveErrors = 50
	// passWithin bounds the wait for a pass of reconcile.
	passWithin = 2 * time.Minute
)

// curve measures the same at more and more engines.
type curve struct {
	rig      *curveRig
	profiles string   // where to keep profiles; empty: nowhere
	users    []string // that have an engine
	named    int      // how many users were thought of
	progress func(string)
}

// level is what was measured with a number of engines.
type level struct {
	Aim     int `json:"aim"`
	Engines int `json:"engines"`
	// Short says why the level was not filled.
	Short string `json:"short,omitempty"`

	FillSeconds   float64            `json:"fill_seconds"`
	FillPerSecond float64            `json:"fill_per_second"`
	Fill          summary            `json:"fill_ms"`
	FillErrors    map[string]int     `json:"fill_errors,omitempty"`
	CPU           map[string]float64 `json:"cpu_ms_per_provision"`
	Rested        float64            `json:"until_rested_seconds"`

	Provision    summary            `json:"provision_ms"`
	ProvisionCPU map[string]float64 `json:"provision_cpu_percent"`
	Steps        map[string]summary `json:"provision_steps_ms"`
	Admit        summary            `json:"admit_ms"`
	AdmitLate    summary            `json:"admit_late_ms"`
	AdmitCPU     map[string]float64 `json:"admit_cpu_percent"`
	Failed       int                `json:"admits_failed"`
	Admits       float64            `json:"admits_per_second"`
	AdmitBusy    summary            `json:"admit_closed_loop_ms"`
	Page         summary            `json:"page_ms"`
	Status       summary            `json:"status_ms"`
	Reconcile    summary            `json:"reconcile_ms"`
	RSS          map[string]float64 `json:"rss_mib"`
	Heap         float64            `json:"orch_live_heap_mib"`
	Peak         float64            `json:"orch_peak_rss_mib"`
	Idle         map[string]float64 `json:"idle_cpu_percent"`
	Stored       stored             `json:"stored"`
}

// runCurve measures all levels, and writes the report. It runs where enterCurve
// has led; when it returns, nothing that it started is left.
func runCurve(ctx context.Context, levels []int, profiles string) (err error) {
	began := time.Now()
	progress := func(line string) { fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), line) }
	rep := newCurveReport(ctx, began)
	r, err := startCurve(ctx, progress)
	if err != nil {
		return err
	}
	defer func() {
		progress("ending what was started")
		err = errors.Join(err, r.close())
	}()
	c := &curve{rig: r, profiles: profiles, progress: progress}
	if err := r.service.poolFull(ctx); err != nil {
		return err
	}
	for _, aim := range levels {
		l, err := c.level(ctx, aim)
		if err != nil {
			return fmt.Errorf("%d engines: %w", aim, err)
		}
		rep.Levels = append(rep.Levels, l)
		if l.Short != "" {
			most := levels[len(levels)-1]
			progress(fmt.Sprintf("%d rows without jobs", most))
			if rep.Rows, err = r.rowsOnly(ctx, most); err != nil {
				return fmt.Errorf("%d rows: %w", most, err)
			}
			break
		}
	}
	rep.Seconds = time.Since(began).Seconds()
	fmt.Print(rep.markdown())
	return rep.save()
}

// level fills up to so many engines and measures.
func (c *curve) level(ctx context.Context, aim int) (*level, error) {
	l := &level{Aim: aim, FillErrors: map[string]int{}}
	c.progress(fmt.Sprintf("%d engines: filling", aim))
	if err := c.fill(ctx, l, aim-curveSingles); err != nil {
		return nil, err
	}
	c.progress(fmt.Sprintf("%d engines after %.0f s: measuring", len(c.users), l.FillSeconds))
	rest, err := c.rig.rested(ctx)
	if err != nil {
		return nil, err
	}
	l.Rested = rest.Seconds()
	for _, measure := range []func(context.Context, *level) error{c.singles, c.admits, c.lists, c.passes, c.rest} {
		if err := measure(ctx, l); err != nil {
			return nil, err
		}
	}
	l.Engines = len(c.users)
	return l, nil
}

// newUser is one who has no engine yet.
func (c *curve) newUser() string {
	c.named++
	return fmt.Sprint("user-", c.named)
}

// anyUser is one who has an engine.
func (c *curve) anyUser() string { return c.users[rand.IntN(len(c.users))] }

// fill provisions until there are so many engines, or the level's time is over.
func (c *curve) fill(ctx context.Context, l *level, until int) error {
	missing := until - len(c.users)
	if missing <= 0 {
		return nil
	}
	before, err := c.rig.used()
	if err != nil {
		return err
	}
	began := time.Now()
	late := began.Add(max(time.Minute, time.Duration(missing)*time.Second/curveSlowest))
	var (
		mu      sync.Mutex
		users   []string // still to be served
		took    []float64
		done    int
		running sync.WaitGroup
	)
	for range missing {
		users = append(users, c.newUser())
	}
	take := func() (user string, more bool) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || len(took)-done > curveErrors || time.Now().After(late) || len(users) == 0 {
			return "", false
		}
		user, users = users[0], users[1:]
		return user, true
	}
	note := func(user string, ms float64, err error) {
		mu.Lock()
		defer mu.Unlock()
		took = append(took, ms)
		if err != nil {
			what := err.Error()
			if answer := (*client.Error)(nil); errors.As(err, &answer) {
				what = string(answer.Code)
			}
			l.FillErrors[what]++
			users = append(users, user)
			return
		}
		c.users = append(c.users, user)
		if done++; done%500 == 0 {
			c.progress(fmt.Sprintf("%d of %d", done, missing))
		}
	}
	for range curveFillers {
		running.Go(func() {
			for user, more := take(); more; user, more = take() {
				at := time.Now()
				_, err := c.rig.service.Admit(ctx, user, client.AdmitOptions{AutoProvision: true})
				note(user, millis(time.Since(at)), err)
			}
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l.FillSeconds = time.Since(began).Seconds()
	l.FillPerSecond, l.Fill = float64(done)/l.FillSeconds, summarize(took)
	after, err := c.rig.used()
	if err != nil {
		return err
	}
	l.CPU = map[string]float64{}
	for name, u := range after {
		l.CPU[name] = (u.CPUMs - before[name].CPUMs) / float64(max(done, 1))
	}
	if done < missing {
		l.Short = fmt.Sprintf("%d of %d in %.0f s, %d errors", done, missing, l.FillSeconds, len(took)-done)
	}
	return nil
}

// singles provisions one engine at a time.
func (c *curve) singles(ctx context.Context, l *level) error {
	rec := recorder{}
	one := func() error {
		user := c.newUser()
		t, err := c.rig.service.timed(ctx, func(ctx context.Context) error { _, err := c.rig.service.Provision(ctx, user, ""); return err })
		if err != nil {
			return fmt.Errorf("provision: %w", err)
		}
		c.users = append(c.users, user)
		rec.add("provision", t.total)
		rec.addSteps("provision", t)
		return nil
	}
	var err error
	l.ProvisionCPU, err = c.rig.taken(func() (err error) {
		for n := 0; n < curveSingles && err == nil; n++ {
			err = one()
		}
		return err
	})
	if err != nil {
		return err
	}
	l.Provision, l.Steps = summarize(rec["provision"]), map[string]summary{}
	for series, values := range rec {
		if name, isStep := cutStep(series); isStep {
			l.Steps[name] = summarize(values)
		}
	}
	return nil
}

// admits lets users in, at a fixed rate and then without a pause.
func (c *curve) admits(ctx context.Context, l *level) error {
	one := func(ctx context.Context, _ int) error {
		a, err := c.rig.service.Admit(ctx, c.anyUser(), client.AdmitOptions{})
		if err == nil && !a.Admitted {
			err = fmt.Errorf("not admitted: %s", a.Reason)
		}
		return err
	}
	var open readResult
	var err error
	l.AdmitCPU, err = c.rig.taken(func() (err error) { open, err = curveAdmits.read(ctx, one); return err })
	if err != nil {
		return err
	}
	l.Admit, l.AdmitLate, l.Failed = summarize(open.latency), summarize(open.late), len(open.failed)
	if len(open.failed) > 0 {
		c.progress(fmt.Sprintf("%d admits failed, the first with: %v", len(open.failed), open.failed[0]))
	}
	saved := make(chan error, 1)
	go func() { saved <- c.keepProfile(ctx, "profile?seconds=4", "cpu-admits", l) }()
	closed, err := closedLoop(ctx, one)
	err = errors.Join(err, <-saved)
	if err != nil {
		return err
	}
	l.Admits, l.AdmitBusy = closed.perSecond, summarize(closed.latency)
	return nil
}

// lists asks for pages and counts.
func (c *curve) lists(ctx context.Context, l *level) (err error) {
	l.Page, l.Status, err = lists(ctx, c.rig.service.Client, len(c.users))
	return err
}

func lists(ctx context.Context, c *client.Client, engines int) (ofPage, ofStatus summary, err error) {
	page, err := listings(func() error { return anyPage(ctx, c, engines) })
	if err != nil {
		return ofPage, ofStatus, err
	}
	status, err := listings(func() error { _, err := c.Status(ctx); return err })
	return summarize(page), summarize(status), err
}

// rowsOnly is what was measured with rows of engines that have no jobs.
type rowsOnly struct {
	Rows   int     `json:"rows"`
	Page   summary `json:"page_ms"`
	Status summary `json:"status_ms"`
	RSS    float64 `json:"rss_mib"`
}

// rowsOnly measures a service of its own with that many rows.
func (r *curveRig) rowsOnly(ctx context.Context, n int) (_ *rowsOnly, err error) {
	s, err := r.start(ctx, rowsPrefix, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	admin := &client.Client{BaseURL: s.BaseURL, AdminKey: r.adminKey}
	product, err := admin.RegisterProduct(ctx, "rows", "Rows", nil)
	if err != nil {
		return nil, err
	}
	c := &client.Client{BaseURL: s.BaseURL, PlatformKey: product.PlatformAPIKey, HTTP: s.HTTP}
	if err := writeRows(ctx, s.store, product.ProductID, n); err != nil {
		return nil, err
	}
	if err := listed(ctx, c, n); err != nil {
		return nil, err
	}
	res := &rowsOnly{Rows: n}
	if res.Page, res.Status, err = lists(ctx, c, n); err != nil {
		return nil, err
	}
	res.RSS, err = s.rssMiB()
	return res, err
}

// passesMeasured is how many passes of reconcile are asked for.
const passesMeasured = 3

// passes asks for passes of reconcile, each after the one before.
func (c *curve) passes(ctx context.Context, l *level) error {
	ctx, cancel := context.WithTimeout(ctx, passesMeasured*passWithin)
	defer cancel()
	admin := &client.Client{BaseURL: c.rig.service.BaseURL, AdminKey: c.rig.adminKey}
	before := len(c.rig.service.log.reconciled())
	for n := range passesMeasured {
		if err := admin.Reconcile(ctx); err != nil {
			return err
		}
		for len(c.rig.service.log.reconciled()) <= before+n {
			if err := wait(ctx, pollEvery); err != nil {
				return fmt.Errorf("no pass of reconcile: %w", err)
			}
		}
	}
	l.Reconcile = summarize(c.rig.service.log.reconciled()[before:])
	return nil
}

// restFor is how long is looked at what everything costs while nobody calls.
const restFor = 10 * time.Second

// rest measures what all processes hold and use while nobody calls, and what the
// stores hold.
func (c *curve) rest(ctx context.Context, l *level) (err error) {
	if l.Idle, err = c.rig.taken(func() error { return wait(ctx, restFor) }); err != nil {
		return err
	}
	now, err := c.rig.used()
	if err != nil {
		return err
	}
	l.RSS = map[string]float64{}
	for name, u := range now {
		l.RSS[name] = u.RSSMiB
	}
	if l.Peak, err = procMiB(fmt.Sprintf("/proc/%d/status", c.rig.service.cmd.Process.Pid), "VmHWM:"); err != nil {
		return err
	}
	if l.Heap, err = c.rig.service.liveHeapMiB(ctx); err != nil {
		return err
	}
	if err := c.keepProfile(ctx, "heap", "heap", l); err != nil {
		return err
	}
	l.Stored, err = c.rig.stored(ctx)
	return err
}

// keepProfile saves a profile of the service at a level, if profiles are kept.
func (c *curve) keepProfile(ctx context.Context, profile, name string, l *level) error {
	if c.profiles == "" {
		return nil
	}
	return c.rig.service.saveProfile(ctx, profile, filepath.Join(c.profiles, fmt.Sprintf("%s-%d.pb.gz", name, l.Aim)))
}
