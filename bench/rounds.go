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

// The series that figures are made of.
const (
	rawProvision     = "provision, raw_exec"
	rawProvisionHand = "provision by hand, raw_exec"
	rawOwn           = "own share, raw_exec"
	rawBoot          = "boot, raw_exec"
	rawBootHand      = "boot by hand, raw_exec"
	rawStop          = "stop"
	rawStopHand      = "stop by hand"
	rawStart         = "start"
	rawStartHand     = "start by hand"
	rawDestroy       = "destroy"
	rotateRestart    = "rotate-key, restart"
	rotateReload     = "rotate-key, reload"

	dockProvision     = "provision, docker"
	dockProvisionHand = "provision by hand, docker"
	dockRun           = "docker run"
	dockOwn           = "own share, docker"
	dockBoot          = "boot, docker"
	dockBootHand      = "boot by hand, docker"
)

// bench takes the measurements.
type bench struct {
	rig *rig
	rec recorder
}

// round measures every operation once, stop and start more often. What is compared with each other runs
// right after each other, in turns the one or the other first.
func (b *bench) round(ctx context.Context, i int) error {
	for _, s := range b.rig.services() {
		if s != b.rig.reload { // its engine lives through all rounds
			if err := s.poolFull(ctx); err != nil {
				return err
			}
		}
	}
	user := fmt.Sprintf("user-%d", i)
	if err := b.rawRound(ctx, i, user); err != nil {
		return err
	}
	if b.rig.docker == nil {
		return nil
	}
	return b.dockerRound(ctx, i, user)
}

func (b *bench) rawRound(ctx context.Context, i int, user string) error {
	s, f, reload := b.rig.raw, b.rig.rawFloor, b.rig.reload
	h := f.next()
	steps := []func() error{
		inTurns(i,
			func() error { return b.provision(ctx, s, user, rawProvision, rawOwn, rawBoot) },
			func() error { return b.byHand(ctx, f, h, rawProvisionHand, rawBootHand) }),
		func() error {
			return b.operation(ctx, s, rotateRestart, func(ctx context.Context) error { _, err := s.RotateKey(ctx, user); return err })
		},
		func() error {
			return b.operation(ctx, reload, rotateReload, func(ctx context.Context) error { _, err := reload.RotateKey(ctx, reloadUser); return err })
		},
	}
	for n := range stopsPerRound {
		steps = append(steps, func() error { return b.stopAndStart(ctx, i+n, user, h) })
	}
	return inOrder(append(steps,
		func() error { return f.settled(ctx) },
		func() error {
			anyPhase()
			return b.operation(ctx, s, rawDestroy, func(ctx context.Context) error { _, err := s.Destroy(ctx, user); return err })
		},
		func() error { return f.discard(ctx, h) },
	))
}

// stopsPerRound: a stop takes as long as its node's next report is away, so it
// takes more of them than of the others until their median says something. The pool
// fills again meanwhile.
const stopsPerRound = 3

// stopAndStart measures both on engines that have run for a while.
func (b *bench) stopAndStart(ctx context.Context, i int, user string, h *handJob) error {
	s, f := b.rig.raw, b.rig.rawFloor
	return inOrder([]func() error{
		func() error { return f.settled(ctx) },
		inTurns(i,
			func() error {
				anyPhase()
				return b.operation(ctx, s, rawStop, func(ctx context.Context) error { _, err := s.Stop(ctx, user); return err })
			},
			func() error {
				anyPhase()
				return b.note(rawStopHand)(f.stop(ctx, h))
			}),
		inTurns(i,
			func() error {
				return b.operation(ctx, s, rawStart, func(ctx context.Context) error { _, err := s.Start(ctx, user); return err })
			},
			func() error { return b.note(rawStartHand)(f.run(ctx, h)) }),
	})
}

func (b *bench) dockerRound(ctx context.Context, i int, user string) error {
	s, f, d := b.rig.inDock, b.rig.dockFloor, b.rig.docker
	h := f.next()
	c, err := d.container(b.rig.dir, resources)
	if err != nil {
		return err
	}
	return inOrder([]func() error{
		inTurns(i,
			func() error { return b.provision(ctx, s, user, dockProvision, dockOwn, dockBoot) },
			func() error { return b.note(dockRun)(d.run(ctx, c)) }),
		func() error { return b.byHand(ctx, f, h, dockProvisionHand, dockBootHand) },
		func() error { return d.remove(ctx, c) },
		func() error { _, err := s.Destroy(ctx, user); return err },
		func() error { return f.discard(ctx, h) },
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
		b.rec.addSteps(series, t)
		return nil
	}
}

func (b *bench) operation(ctx context.Context, s *service, series string, call func(context.Context) error) error {
	return b.note(series)(s.timed(ctx, call))
}

// provision measures one, its boot, and the service's own share: the caller's
// wait without Nomad's registration and the boot.
func (b *bench) provision(ctx context.Context, s *service, user, series, own, boot string) error {
	t, err := s.timed(ctx, func(ctx context.Context) error { _, err := s.Provision(ctx, user, ""); return err })
	if err == nil {
		b.rec.add(own, t.without("register", "boot"))
		b.rec.add(boot, t.steps["boot"])
	}
	return b.note(series)(t, err)
}

// byHand measures the same job without the service. Its boot begins where the
// service's does, when Nomad has answered the registration.
func (b *bench) byHand(ctx context.Context, f *floor, h *handJob, series, boot string) error {
	t, err := f.run(ctx, h)
	if err == nil {
		b.rec.add(boot, t.without("register"))
	}
	return b.note(series)(t, err)
}

const (
	// fleetSize is how many engines run while the reads and the memory are
	// measured.
	fleetSize = 20
	// fleetAtOnce are provisioned together.
	fleetAtOnce = 4
)

// fleetResult is what was measured with many engines running.
type fleetResult struct {
	reads  readResult
	admits readResult
	// bare is the same load of one Consul read alone: what every read of the
	// service is made of.
	bare readResult
	// admitted and direct are callers that make admits without a pause, and the
	// three calls that an admit replaces.
	admitted, direct closedResult
	// running and end are the resident memory of the service in MiB, with the
	// fleet after the reads, and at the end with no engine left.
	running, end float64
}

// fleet runs many engines, reads them, and removes them.
func (b *bench) fleet(ctx context.Context) (res fleetResult, err error) {
	s := b.rig.raw
	if err := s.poolFull(ctx); err != nil {
		return res, err
	}
	users := make([]string, fleetSize)
	for i := range users {
		users[i] = fmt.Sprintf("fleet-%d", i)
	}
	each := func(do func(ctx context.Context, user string) error) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(fleetAtOnce)
		for _, user := range users {
			group.Go(func() error { return do(ctx, user) })
		}
		return group.Wait()
	}
	if err := each(func(ctx context.Context, user string) error { _, err := s.Provision(ctx, user, ""); return err }); err != nil {
		return res, err
	}
	if err := s.poolFull(ctx); err != nil {
		return res, err
	}
	if res.reads, err = read(ctx, func(ctx context.Context, n int) error {
		_, err := s.Engine(ctx, users[n%len(users)])
		return err
	}); err != nil {
		return res, err
	}
	if res.admits, err = read(ctx, func(ctx context.Context, n int) error {
		a, err := s.Admit(ctx, users[n%len(users)], client.AdmitOptions{})
		if err == nil && !a.Admitted {
			err = errors.New("not admitted")
		}
		return err
	}); err != nil {
		return res, err
	}
	engines := make([]string, len(users))
	for i, user := range users {
		e, err := s.Engine(ctx, user)
		if err != nil {
			return res, err
		}
		engines[i] = e.EngineID
	}
	direct, err := newAPIs(b.rig.stack)
	if err != nil {
		return res, err
	}
	if res.direct, err = closedLoop(ctx, func(ctx context.Context, n int) error { return direct.ask(ctx, engines[n%len(engines)]) }); err != nil {
		return res, err
	}
	if res.admitted, err = closedLoop(ctx, func(ctx context.Context, n int) error {
		_, err := s.Admit(ctx, users[n%len(users)], client.AdmitOptions{})
		return err
	}); err != nil {
		return res, err
	}
	if res.running, err = s.rssMiB(); err != nil {
		return res, err
	}
	if res.bare, err = read(ctx, func(ctx context.Context, _ int) error {
		_, err := s.store.PooledVolumes(ctx)
		return err
	}); err != nil {
		return res, err
	}
	if err := each(func(ctx context.Context, user string) error { _, err := s.Destroy(ctx, user); return err }); err != nil {
		return res, err
	}
	res.end, err = s.rssMiB()
	return res, err
}
