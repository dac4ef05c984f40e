package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/septemberai/orch/client"
)

// warmUps are rounds that are not counted: caches fill.
const warmUps = 2

// The operations that rounds measure.
const (
	provision     = "provision"
	noPool        = "provision without ready volumes"
	warmClaim     = "provision, warm"
	start         = "start"
	stop          = "stop"
	wake          = "wake"
	wakePaused    = "wake, paused"
	destroy       = "destroy"
	rotateRestart = "rotate-key, restart"
	rotateReload  = "rotate-key, reload"
)

// By what they are done. Nothing said: by the service.
const (
	byHand    = " by hand"
	byScript  = " by a script"
	dockerRun = "docker run"
)

// series is the name of what was measured with a driver.
func series(operation, driver string) string { return operation + ", " + driver }

func ownShare(driver string) string            { return series("own share", driver) }
func bootOf(how, driver string) string         { return series("boot"+how, driver) }
func (d *side) series(operation string) string { return series(operation, d.driver) }

// side is what is measured with one driver.
type side struct {
	driver string
	orch   *service
	reload *service       // a new key is a signal to its engine; nil: not measured
	warm   *client.Client // its product has warm engines
	naps   []*nap
	floor  *floor
	script *script
	stops  int // per round
}

// nap is a way in which engines sleep: the operation that wakes them, what the
// policy of their product says, and those that sleep now.
type nap struct {
	operation string
	mode      string
	product   *client.Client
	asleep    []string // user_ids
}

const (
	// warmKept is how many warm engines wait: a claim finds one, and the next
	// one's boot is over before the next claim.
	warmKept = 2
	// warmMemoryMB makes the warm product's engines another kind than the
	// others', so that it alone gets warm ones.
	warmMemoryMB = 65
	// coldRounds of provisions without ready volumes, which take 6 to 10 s each.
	coldRounds = 3
	// reloadUser has the engine that reloads its key.
	reloadUser = "reload"
)

// side starts the services of one driver and prepares its engines run by hand.
func (b *bench) side(ctx context.Context, driver string) (*side, error) {
	b.progress("rounds: preparing engines, %s", driver)
	r, rounds := b.rig, warmUps+b.n
	d := &side{driver: driver, stops: 1, naps: []*nap{{operation: wake}}}
	vars := r.vars("rounds-"+driver, driver, 4, nil)
	var err error
	if d.orch, err = r.start(ctx, vars); err != nil {
		return nil, err
	}
	if d.floor, err = newFloor(ctx, r.stack.NomadAddr, vars, 2*rounds); err != nil {
		return nil, err
	}
	if d.script, err = r.script(d.floor); err != nil {
		return nil, err
	}
	if driver == inDock {
		d.floor.started = r.docker.taskStarted
		d.naps = append(d.naps, &nap{operation: wakePaused, mode: "pause"})
	} else {
		d.stops = rawStops
		if d.reload, err = r.start(ctx, r.vars("reload", driver, 1, map[string]string{"ORCH_ENGINE_KEY_RELOAD": "signal"})); err != nil {
			return nil, err
		}
		if err := d.reload.poolFull(ctx); err != nil {
			return nil, err
		}
		if _, err := d.reload.Provision(ctx, reloadUser, ""); err != nil {
			return nil, err
		}
	}
	keep, memory := warmKept, warmMemoryMB
	if d.warm, err = d.orch.product(ctx, "warm", &client.Policy{WarmPool: &keep, MemoryMB: &memory}); err != nil {
		return nil, err
	}
	for _, n := range d.naps {
		if err := n.layDown(ctx, d.orch, rounds); err != nil {
			return nil, fmt.Errorf("%s: %w", n.operation, err)
		}
	}
	return d, nil
}

// layDown provisions n engines and returns when they sleep.
func (n *nap) layDown(ctx context.Context, s *service, count int) (err error) {
	soon := 1
	if n.product, err = s.product(ctx, "sleepy"+n.mode, &client.Policy{IdleTimeoutS: &soon, SleepMode: n.mode}); err != nil {
		return err
	}
	for i := range count {
		n.asleep = append(n.asleep, fmt.Sprint("sleeper-", i))
	}
	if err := each(ctx, n.asleep, fleetAtOnce, func(ctx context.Context, user string) error { _, err := n.product.Provision(ctx, user, ""); return err }); err != nil {
		return err
	}
	return until(ctx, func() error {
		list, err := n.product.Engines(ctx, client.EngineFilter{Status: client.Sleeping, Limit: 1})
		if err == nil && list.Total < count {
			err = fmt.Errorf("%d of %d engines sleep", list.Total, count)
		}
		return err
	})
}

// each calls do for all, so many at a time.
func each[T any](ctx context.Context, all []T, atOnce int, do func(context.Context, T) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, one := range all {
		group.Go(func() error { return do(ctx, one) })
	}
	return group.Wait()
}

// rounds measures every operation once per round and driver.
func (b *bench) rounds(ctx context.Context) error {
	for _, driver := range b.rig.drivers() {
		if err := b.roundsOf(ctx, driver); err != nil {
			return fmt.Errorf("%s: %w", driver, err)
		}
		if err := b.rig.endServices(); err != nil {
			return err
		}
	}
	b.rep.addRounds(b.rec)
	return nil
}

func (b *bench) roundsOf(ctx context.Context, driver string) error {
	if err := b.withoutPool(ctx, driver); err != nil {
		return err
	}
	d, err := b.side(ctx, driver)
	if err != nil {
		return err
	}
	counted := b.rec
	b.rec = recorder{}
	for i := range warmUps + b.n {
		if i == warmUps {
			b.rec = counted
		}
		if i >= warmUps && (i-warmUps)%5 == 0 {
			b.progress("rounds: %s, %d of %d", driver, i-warmUps+1, b.n)
		}
		if err := b.round(ctx, d, i); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	return nil
}

// withoutPool measures provisions that make their volume first.
func (b *bench) withoutPool(ctx context.Context, driver string) error {
	b.progress("rounds: %d provisions without ready volumes, %s", coldRounds, driver)
	s, err := b.rig.start(ctx, b.rig.vars("cold-"+driver, driver, 0, nil))
	if err != nil {
		return err
	}
	for i := range coldRounds {
		user := fmt.Sprint("user-", i)
		if err := inOrder([]func() error{
			func() error { return b.operation(ctx, s, series(noPool, driver), provisionOf(s.Client, user)) },
			func() error { _, err := s.Destroy(ctx, user); return err },
		}); err != nil {
			return err
		}
	}
	return b.rig.end(s)
}

func provisionOf(c *client.Client, user string) func(context.Context) error {
	return func(ctx context.Context) error { _, err := c.Provision(ctx, user, ""); return err }
}

// round measures every operation once, stop and start more often. What is compared
// with each other runs right after each other, in turns the one or the other first.
func (b *bench) round(ctx context.Context, d *side, i int) error {
	user := fmt.Sprintf("user-%d", i)
	s, f, hand, scripted := d.orch, d.floor, d.floor.next(), d.floor.next()
	steps := []func() error{
		func() error { return s.poolFull(ctx) },
		inTurns(i,
			func() error { return b.provision(ctx, d, user) },
			func() error { return b.byHand(ctx, d, hand) }),
		func() error { return b.dockerRun(ctx, d) },
		func() error { return b.note(d.series(provision + byScript))(d.script.run(ctx, scripted)) },
		inTurns(i,
			func() error {
				return b.operation(ctx, s, d.series(rotateRestart), func(ctx context.Context) error { _, err := s.RotateKey(ctx, user); return err })
			},
			func() error { return b.note(d.series(rotateRestart + byHand))(f.rotate(ctx, hand)) }),
	}
	if d.reload != nil {
		steps = append(steps, func() error {
			return b.operation(ctx, d.reload, d.series(rotateReload), func(ctx context.Context) error { _, err := d.reload.RotateKey(ctx, reloadUser); return err })
		})
	}
	for n := range d.stops {
		steps = append(steps, func() error { return b.stopAndStart(ctx, d, i+n, user, hand) })
	}
	steps = append(steps,
		func() error { return f.settled(ctx) },
		func() error { return b.note(d.series(stop + byScript))(d.script.stop(ctx, scripted)) },
		func() error { return b.note(d.series(start + byScript))(d.script.run(ctx, scripted)) },
		func() error { return f.settled(ctx) },
		inTurns(i,
			func() error {
				anyPhase()
				return b.operation(ctx, s, d.series(destroy), destroyOf(s.Client, user))
			},
			func() error {
				anyPhase()
				return b.note(d.series(destroy + byHand))(f.destroy(ctx, hand))
			}),
		func() error {
			anyPhase()
			return b.note(d.series(destroy + byScript))(d.script.destroy(ctx, scripted))
		},
		func() error { return b.claimWarm(ctx, d, user) },
	)
	for _, n := range d.naps {
		steps = append(steps, func() error { return b.wake(ctx, d, n) })
	}
	return inOrder(steps)
}

func destroyOf(c *client.Client, user string) func(context.Context) error {
	return func(ctx context.Context) error { _, err := c.Destroy(ctx, user); return err }
}

// rawStops: a stop takes as long as its node's next report is away, so it takes
// more of them than of the others until their median says something. The pool
// fills again meanwhile.
const rawStops = 3

// stopAndStart measures both on engines that have run for a while.
func (b *bench) stopAndStart(ctx context.Context, d *side, i int, user string, h *handJob) error {
	s, f := d.orch, d.floor
	return inOrder([]func() error{
		func() error { return f.settled(ctx) },
		inTurns(i,
			func() error {
				anyPhase()
				return b.operation(ctx, s, d.series(stop), func(ctx context.Context) error { _, err := s.Stop(ctx, user); return err })
			},
			func() error {
				anyPhase()
				return b.note(d.series(stop + byHand))(f.stop(ctx, h))
			}),
		inTurns(i,
			func() error {
				return b.operation(ctx, s, d.series(start), func(ctx context.Context) error { _, err := s.Start(ctx, user); return err })
			},
			func() error { return b.note(d.series(start + byHand))(f.run(ctx, h)) }),
	})
}

// dockerRun measures `docker run` by itself, with the docker driver.
func (b *bench) dockerRun(ctx context.Context, d *side) error {
	if d.driver != inDock {
		return nil
	}
	c, err := b.rig.docker.container(b.rig.dir, resources)
	if err != nil {
		return err
	}
	if err := b.note(dockerRun)(b.rig.docker.run(ctx, c)); err != nil {
		return err
	}
	return b.rig.docker.remove(ctx, c)
}

// claimWarm measures a provision that finds a warm engine, with no other one
// being made at its beginning.
func (b *bench) claimWarm(ctx context.Context, d *side, user string) error {
	return inOrder([]func() error{
		func() error { return d.orch.warmFull(ctx, warmKept) },
		func() error { return b.operation(ctx, d.orch, d.series(warmClaim), provisionOf(d.warm, user)) },
		func() error { return destroyOf(d.warm, user)(ctx) },
	})
}

// wake measures an admit that wakes an engine, with no warm one being made at its
// beginning.
func (b *bench) wake(ctx context.Context, d *side, n *nap) error {
	user := n.asleep[0]
	n.asleep = n.asleep[1:]
	return inOrder([]func() error{
		func() error { return d.orch.warmFull(ctx, warmKept) },
		func() error { return d.floor.settled(ctx) },
		func() error {
			return b.operation(ctx, d.orch, d.series(n.operation), func(ctx context.Context) error {
				a, err := n.product.Admit(ctx, user, client.AdmitOptions{AutoWake: true})
				if err == nil && !a.Admitted {
					err = errors.New("not admitted: " + a.Reason)
				}
				return err
			})
		},
		func() error { return destroyOf(n.product, user)(ctx) },
	})
}

func inOrder(steps []func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// inTurns runs both, the second one first in every other round.
func inTurns(i int, first, second func() error) func() error {
	if i%2 == 1 {
		first, second = second, first
	}
	return func() error { return inOrder([]func() error{first, second}) }
}

// reportEvery is how often a Nomad client tells the servers of ended processes
// (allocSyncIntv in its client/client.go).
const reportEvery = 200 * time.Millisecond

// anyPhase waits for a random part of reportEvery, so that what is measured does
// not begin in step with the report that ended the measurement before.
func anyPhase() { time.Sleep(rand.N(reportEvery)) }

// note records one measurement by its name.
func (b *bench) note(series string) func(timing, error) error {
	return func(t timing, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", series, err)
		}
		b.rec.add(series, t.total)
		if len(t.steps) > 0 {
			b.rec.addSteps(series, t)
		}
		return nil
	}
}

func (b *bench) operation(ctx context.Context, s *service, series string, call func(context.Context) error) error {
	return b.note(series)(s.timed(ctx, call))
}

// provision measures one, its boot, and the service's own share: the caller's
// wait without Nomad's registration and the boot.
func (b *bench) provision(ctx context.Context, d *side, user string) error {
	t, err := d.orch.timed(ctx, provisionOf(d.orch.Client, user))
	if err == nil {
		b.rec.add(ownShare(d.driver), t.without("register", "boot"))
		b.rec.add(bootOf("", d.driver), t.steps["boot"])
	}
	return b.note(d.series(provision))(t, err)
}

// byHand measures the same job without the service. Its boot begins where the
// service's does, when Nomad has answered the registration.
func (b *bench) byHand(ctx context.Context, d *side, h *handJob) error {
	t, err := d.floor.run(ctx, h)
	if err == nil {
		b.rec.add(bootOf(byHand, d.driver), t.without("register"))
	}
	return b.note(d.series(provision+byHand))(t, err)
}
