//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/septemberai/orch/client"
)

// The operations that rounds measure, and by what they are done: nothing said, the
// service.
const (
	provision     = "provision, volume ready"
	noPool        = "provision without ready volumes"
	warmClaim     = "provision, warm"
	start         = "start"
	stop          = "stop"
	wake          = "wake"
	wakePaused    = "wake, paused"
	destroy       = "destroy"
	rotateRestart = "rotate-key, restart"
	rotateReload  = "rotate-key, reload"

	byHand    = " by hand"
	byScript  = " by a script"
	dockerRun = "docker run"
)

const (
	// warmUps are rounds that are not counted: caches fill.
	warmUps = 2
	// warmKept is how many warm engines wait: a claim finds one, and the next one's
	// boot is over before the next claim.
	warmKept = 2
	// warmMemoryMB makes the warm product's engines another kind than the others', so
	// that it alone gets warm ones.
	warmMemoryMB = 65
	// coldRounds of provisions without ready volumes, which take 6 to 10 s each.
	coldRounds = 3
	// roundsPool is how many volumes are ready before each provision.
	roundsPool = 4
	// fewAtOnce engines are provisioned concurrently where no time is taken.
	fewAtOnce = 4
	// reloadUser has the engine that reloads its key.
	reloadUser = "reload"
)

// side is what is measured with one driver.
type side struct {
	*bench
	driver string
	orch   *service
	reload *service            // a new key is a signal to its engine; nil: not measured
	warm   *service            // as a product that has warm engines
	sleepy map[string]*service // as products whose engines sleep, by what wakes them
	floor  *floor
	stops  int // per round
}

// rounds measures every operation once per round and driver.
func (b *bench) rounds(ctx context.Context) {
	for _, driver := range b.drivers {
		d := &side{bench: b, driver: driver, stops: 1, sleepy: map[string]*service{}}
		d.withoutPool(ctx)
		b.endServices()
		d.prepare(ctx)
		counted := b.rec
		for i := range warmUps + b.n {
			if b.rec = counted; i < warmUps {
				b.rec = recorder{}
			}
			b.progress("rounds: %s, %d of %d", driver, i, warmUps+b.n)
			d.round(ctx, i)
		}
		b.endServices()
	}
	b.addRounds(b.rec)
}

// withoutPool measures provisions whose volume is not ready.
func (d *side) withoutPool(ctx context.Context) {
	s := d.start(ctx, d.vars("cold-"+d.driver, d.driver, 0, nil))
	for range coldRounds {
		d.op(ctx, noPool, s, s.provision, "user")()
		s.destroy(ctx, "user")
	}
}

// prepare starts the services of one driver, and prepares its engines run by hand and
// those that sleep.
func (d *side) prepare(ctx context.Context) {
	vars, rounds := d.vars("rounds-"+d.driver, d.driver, roundsPool, nil), warmUps+d.n
	d.orch = d.start(ctx, vars)
	d.floor = d.newFloor(ctx, vars, 2*rounds)
	modes := map[string]string{wake: ""}
	if d.driver == inDock {
		modes[wakePaused] = "pause"
	} else {
		// A stop takes as long as its node's next report is away, so it takes more of them
		// than of the others until their median says something.
		d.stops = 3
		d.reload = d.start(ctx, d.vars("reload", d.driver, 1, map[string]string{"ORCH_ENGINE_KEY_RELOAD": "signal"}))
		d.reload.provision(ctx, reloadUser)
	}
	keep, memory, soon := warmKept, warmMemoryMB, 1
	d.warm = d.orch.product(ctx, "warm", &client.Policy{WarmPool: &keep, MemoryMB: &memory})
	for operation, mode := range modes {
		s := d.orch.product(ctx, "sleepy"+mode, &client.Policy{IdleTimeoutS: &soon, SleepMode: mode})
		d.sleepy[operation] = s
		each(ctx, usersOf("sleeper", rounds), fewAtOnce, s.provision)
		until(ctx, func() error {
			status, err := s.Status(ctx)
			if err == nil && status.ByStatus[client.Sleeping] < rounds {
				err = fmt.Errorf("%d of %d engines sleep", status.ByStatus[client.Sleeping], rounds)
			}
			return err
		})
	}
}

// round measures every operation once, stop and start more often. What is compared
// with each other runs right after each other, in turns the one or the other first.
func (d *side) round(ctx context.Context, i int) {
	s, f, user := d.orch, d.floor, fmt.Sprintf("user-%d", i)
	byAPI, byShell := <-f.ready, <-f.ready
	s.waiting(ctx, roundsPool, 0)
	inTurns(i, d.op(ctx, provision, s, s.provision, user), d.hand(ctx, provision+byHand, f.run, byAPI))
	if d.driver == inDock {
		d.hand(ctx, dockerRun, f.container, byAPI)()
	}
	d.hand(ctx, provision+byScript, f.byScript("run"), byShell)()
	inTurns(i, d.op(ctx, rotateRestart, s, s.rotateKey, user), d.hand(ctx, rotateRestart+byHand, f.rotate, byAPI))
	if r := d.reload; r != nil {
		d.op(ctx, rotateReload, r, r.rotateKey, reloadUser)()
	}
	for n := range d.stops { // of engines that have run for a while
		f.settled(ctx)
		inTurns(i+n, anyPhase(d.op(ctx, stop, s, s.stopEngine, user)), anyPhase(d.hand(ctx, stop+byHand, f.stop, byAPI)))
		inTurns(i+n, d.op(ctx, start, s, s.startEngine, user), d.hand(ctx, start+byHand, f.run, byAPI))
	}
	f.settled(ctx)
	d.hand(ctx, stop+byScript, f.byScript("stop"), byShell)()
	d.hand(ctx, start+byScript, f.byScript("run"), byShell)()
	f.settled(ctx)
	inTurns(i, anyPhase(d.op(ctx, destroy, s, s.destroy, user)), anyPhase(d.hand(ctx, destroy+byHand, f.destroy, byAPI)))
	anyPhase(d.hand(ctx, destroy+byScript, f.byScript("destroy"), byShell))()
	s.waiting(ctx, 0, warmKept) // so none is being made when the measurement begins
	d.op(ctx, warmClaim, s, d.warm.provision, user)()
	d.warm.destroy(ctx, user)
	for operation, asleep := range d.sleepy {
		sleeper := fmt.Sprintf("sleeper-%d", i)
		s.waiting(ctx, 0, warmKept)
		f.settled(ctx)
		d.op(ctx, operation, s, asleep.wake, sleeper)()
		asleep.destroy(ctx, sleeper)
	}
}

// op measures one operation of the service on a user's engine.
func (d *side) op(ctx context.Context, operation string, s *service, call func(context.Context, string), user string) func() {
	return func() { s.timed(ctx, d.rec, seriesOf(operation, d.driver), call, user) }
}

// hand measures one operation on an engine run without the service.
func (d *side) hand(ctx context.Context, operation string, do func(context.Context, *stopwatch, *handJob), h *handJob) func() {
	return func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		w, series := startWatch(), seriesOf(operation, d.driver)
		do(ctx, w, h)
		d.rec.operation(series, w, false)
		if operation == provision+byHand { // begins where the service's does
			d.rec.add(stepOf(series, "boot"), w.without("register"))
		}
	}
}

// seriesOf is the name of what was measured with a driver.
func seriesOf(operation, driver string) string { return operation + ", " + driver }

// inTurns runs both, the second one first in every other round.
func inTurns(i int, first, second func()) {
	if i%2 == 1 {
		first, second = second, first
	}
	first()
	second()
}

// anyPhase waits first for a random part of the time after which a Nomad client next
// tells the servers of ended processes (allocSyncIntv in its client/client.go), so that
// what is measured does not begin in step with the report that ended the one before.
func anyPhase(do func()) func() {
	return func() { time.Sleep(rand.N(200 * time.Millisecond)); do() }
}

// What the service is compared with, as tables call it.
const (
	hand     = "Nomad by hand"
	scripted = "a script"
	theSame  = "— the same"
)

// comparisons are the figures of the rounds for each driver: the name, empty for that of
// the operation; what it is compared with, and the operation that takes its place there.
// An operation that was not measured with one is left out. most is the target for the
// ratio or, where nothing is compared, for the median in milliseconds; 0: none.
var comparisons = []struct {
	name, of, against, floor string
	most                     float64
}{
	{"", provision, hand, provision + byHand, 1.3},
	{theSame, provision, scripted, provision + byScript, 0},
	{theSame, provision, dockerRun, dockerRun, 1.5},
	{"— of it orch's own share", ownOf(provision), "", "", 30},
	{"— of it boot", stepOf(provision, "boot"), hand, stepOf(provision+byHand, "boot"), 0},
	{"", warmClaim, "", "", 20},
	// A container is what docker run makes; a process has a tenth of the work, and is
	// compared all the same.
	{theSame, warmClaim, dockerRun, dockerRun, 0.1},
	{theSame, warmClaim, scripted, provision + byScript, 0},
	{"", noPool, "", "", 0},
	{"", wake, hand, start + byHand, 1.3},
	{"", wakePaused, "", "", 50},
	{"", start, hand, start + byHand, 1.3},
	{theSame, start, scripted, start + byScript, 0},
	{"", stop, hand, stop + byHand, 1.3},
	{theSame, stop, scripted, stop + byScript, 0},
	{"", destroy, hand, destroy + byHand, 1.2},
	{theSame, destroy, scripted, destroy + byScript, 0},
	{"", rotateRestart, hand, rotateRestart + byHand, 0},
	{"", rotateReload, "", "", 150},
}

// addRounds makes the figures of what the rounds recorded.
func (rep *report) addRounds(rec recorder) {
	for _, driver := range []string{rawExec, inDock} {
		for _, c := range comparisons {
			series, floor := seriesOf(c.of, driver), seriesOf(c.floor, driver)
			if c.floor == dockerRun {
				floor = seriesOf(dockerRun, inDock)
			}
			f := figure{name: cmp.Or(c.name, series), unit: "ms", orch: rec.summary(series), own: rec.summary(ownOf(series))}
			if f.orch.n == 0 || c.floor != "" && len(rec[floor]) == 0 {
				continue
			}
			if c.floor == "" {
				f = f.most(f.orch.p50, c.most, "≤ %g ms")
			} else {
				f = f.beside(c.against, rec.summary(floor))
				f = f.most(f.ratio, c.most, "≤ %g ×")
			}
			rep.add(f)
			if c.name == "" {
				rep.addSteps(rec, series)
				rep.addSteps(rec, floor)
			}
		}
	}
}
