//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/septemberai/orch/client"
)

// The operations that rounds measure. Without a suffix the service makes them; byHand and
// byScript are suffixes of the others. hand, scripted and theSame are texts in tables.
const (
	provision  = "provision, volume ready"
	warmClaim  = "provision, warm"
	start      = "start"
	stop       = "stop"
	wake       = "wake"
	wakePaused = "wake, paused"
	destroy    = "destroy"
	rotate     = "rotate-key"
	dockerRun  = "docker run"

	byHand, byScript        = " by hand", " by a script"
	hand, scripted, theSame = "Nomad by hand", "a script", "— the same"
)

const (
	// warmUps is the number of first rounds that are not counted, because caches are empty.
	warmUps = 2
	// warmKept is the number of warm engines. A claim takes one, and its replacement has
	// booted before the next claim.
	warmKept = 2
	// stops is the number of stops per round. The duration of a stop depends on when its node
	// reports next, so its median needs more values than those of other operations.
	stops = 3
	// roundsPool is how many volumes are ready before each provision.
	roundsPool = 4
)

// side is the measurement of one driver.
type side struct {
	*bench
	driver string
	orch   *service
	warm   *service            // with the client of a product that has warm engines
	sleepy map[string]*service // with clients of products whose engines sleep, by operation
	floor  *floor
}

// rounds measures every operation once per round and driver.
func (b *bench) rounds(ctx context.Context) {
	for _, driver := range b.drivers {
		d := &side{bench: b, driver: driver, sleepy: map[string]*service{}}
		d.orch = d.start(ctx, "rounds-"+driver, driver, roundsPool)
		d.floor = d.newFloor(ctx, d.orch, 2*(warmUps+d.n))
		d.warm = d.orch.warmProduct(ctx, warmKept)
		modes, soon := map[string]string{wake: ""}, 1
		if driver == inDock {
			modes[wakePaused] = "pause"
		}
		for operation, mode := range modes {
			s := d.orch.product(ctx, "sleepy"+mode, &client.Policy{IdleTimeoutS: &soon, SleepMode: mode})
			each(ctx, usersOf("user", warmUps+d.n), 4, s.provision) // most engines sleep before their round begins
			d.sleepy[operation] = s
		}
		for i := range warmUps + b.n {
			if i == warmUps { // forget what was recorded so far
				maps.DeleteFunc(b.rec, func(series string, _ []float64) bool { return strings.HasSuffix(series, driver) })
			}
			b.progress("rounds: %s, %d of %d", driver, i, warmUps+b.n)
			d.round(ctx, i)
		}
		b.endServices()
	}
	b.addRounds(b.rec)
}

// round measures every operation once, and stop and start more often. Operations that are
// compared run one directly after the other, in alternating order.
func (d *side) round(ctx context.Context, i int) {
	s, f, user := d.orch, d.floor, fmt.Sprintf("user-%d", i)
	byAPI, byShell := <-f.ready, <-f.ready
	s.waiting(ctx, roundsPool, 0)
	inTurns(i, d.op(ctx, provision, s, s.provision, user), d.hand(ctx, provision+byHand, f.run, byAPI))
	if d.driver == inDock {
		d.hand(ctx, dockerRun, f.container, byAPI)()
	}
	d.hand(ctx, provision+byScript, f.byScript("run"), byShell)()
	inTurns(i, d.op(ctx, rotate, s, s.rotateKey, user), d.hand(ctx, rotate+byHand, f.rotate, byAPI))
	for n := range stops { // of engines that have run for some time
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
	s.waiting(ctx, 0, warmKept) // so that none boots during the measurement
	d.op(ctx, warmClaim, s, d.warm.provision, user)()
	d.warm.destroy(ctx, user)
	for operation, sleepy := range d.sleepy {
		until(ctx, 20*time.Millisecond, func() error {
			e, err := sleepy.Engine(ctx, user)
			if err == nil && e.Status != client.Sleeping {
				err = errors.New("the engine does not sleep yet")
			}
			return err
		})
		s.waiting(ctx, 0, warmKept)
		f.settled(ctx)
		d.op(ctx, operation, s, sleepy.wake, user)()
		sleepy.destroy(ctx, user)
	}
}

// op measures one operation of the service on a user's engine.
func (d *side) op(ctx context.Context, operation string, s *service, call func(context.Context, string), user string) func() {
	return func() { s.timed(ctx, d.rec, seriesOf(operation, d.driver), call, user) }
}

// hand measures one operation on an engine without the service.
func (d *side) hand(ctx context.Context, operation string, do func(context.Context, *stopwatch, *handJob), h *handJob) func() {
	return func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		w, series := startWatch(), seriesOf(operation, d.driver)
		do(ctx, w, h)
		d.rec.operation(series, w, false)
	}
}

// seriesOf returns the name of an operation's series with a driver.
func seriesOf(operation, driver string) string { return operation + ", " + driver }

// inTurns runs both functions, in every second round the second one first.
func inTurns(i int, both ...func()) {
	both[i%2]()
	both[1-i%2]()
}

// anyPhase first waits for a random part of the interval of a Nomad client's reports
// (allocSyncIntv in its client/client.go), so that the operation does not always begin at the
// same time after a report.
func anyPhase(do func()) func() {
	return func() { time.Sleep(rand.N(200 * time.Millisecond)); do() }
}

// comparisons are the figures of the rounds for each driver: an operation (of), and the same
// without the service (floor), if that was measured. most is the target for the ratio or,
// without a comparison, for the median in milliseconds; 0: none.
var comparisons = []struct {
	name, of, against, floor string
	most                     float64
}{
	{"", provision, hand, provision + byHand, 1.3},
	{theSame, provision, scripted, provision + byScript, 0},
	{theSame, provision, dockerRun, dockerRun, 1.5},
	{"— of it orch's own share", ownOf(provision), "", "", 30},
	{"", warmClaim, "", "", 20},
	{theSame, warmClaim, dockerRun, dockerRun, 0.1},
	{theSame, warmClaim, scripted, provision + byScript, 0},
	{"", wake, hand, start + byHand, 1.3},
	{"", wakePaused, "", "", 50},
	{"", start, hand, start + byHand, 1.3},
	{theSame, start, scripted, start + byScript, 0},
	{"", stop, hand, stop + byHand, 1.3},
	{theSame, stop, scripted, stop + byScript, 0},
	{"", destroy, hand, destroy + byHand, 1.2},
	{theSame, destroy, scripted, destroy + byScript, 0},
	{"", rotate, hand, rotate + byHand, 0},
}

// addRounds adds the figures of what the rounds recorded.
func (rep *report) addRounds(rec recorder) {
	for _, driver := range []string{rawExec, inDock} {
		for _, c := range comparisons {
			series, floor := seriesOf(c.of, driver), seriesOf(c.floor, driver)
			if len(rec[series]) == 0 || c.floor != "" && len(rec[floor]) == 0 {
				continue
			}
			f := figure{name: cmp.Or(c.name, series), unit: "ms", orch: rec.summary(series), own: rec.summary(ownOf(series))}
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
