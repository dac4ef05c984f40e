package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/septemberai/orch/client"
)

const (
	// fleetSize is how many engines run while the reads and the memory are
	// measured.
	fleetSize = 20
	// fleetAtOnce are provisioned together.
	fleetAtOnce = 4
)

// loads are the open loops of reads: how many per second, for how long.
var (
	usual = openLoad{500, 10 * time.Second}
	heavy = openLoad{5000, 5 * time.Second}
)

// fleetResult is what was measured with many engines running.
type fleetResult struct {
	reads, admits, heavy readResult
	// bare is the usual load of one Consul read alone: what every read of the
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
func (b *bench) fleet(ctx context.Context) error {
	res, err := b.readFleet(ctx)
	if err == nil {
		b.rep.addFleet(res)
	}
	return err
}

func (b *bench) readFleet(ctx context.Context) (res fleetResult, err error) {
	s, err := b.rig.start(ctx, b.rig.vars("fleet", rawExec, fleetSize, nil))
	if err != nil {
		return res, err
	}
	users := make([]string, fleetSize)
	for i := range users {
		users[i] = fmt.Sprintf("fleet-%d", i)
	}
	engines := make([]string, len(users))
	direct, err := newAPIs(b.rig.stack)
	if err != nil {
		return res, err
	}
	admit := func(ctx context.Context, n int) error {
		a, err := s.Admit(ctx, users[n%len(users)], client.AdmitOptions{})
		if err == nil && !a.Admitted {
			err = errors.New("not admitted: " + a.Reason)
		}
		return err
	}
	err = inOrder([]func() error{
		func() error { return s.poolFull(ctx) },
		func() error {
			return each(ctx, users, fleetAtOnce, func(ctx context.Context, user string) error { return provisionOf(s.Client, user)(ctx) })
		},
		func() error { return s.poolFull(ctx) },
		func() (err error) {
			for i, user := range users {
				e, eerr := s.Engine(ctx, user)
				if eerr != nil {
					return eerr
				}
				engines[i] = e.EngineID
			}
			return nil
		},
		func() (err error) {
			res.reads, err = usual.read(ctx, func(ctx context.Context, n int) error { _, err := s.Engine(ctx, users[n%len(users)]); return err })
			return err
		},
		func() (err error) { res.admits, err = usual.read(ctx, admit); return err },
		func() (err error) {
			res.bare, err = usual.read(ctx, func(ctx context.Context, _ int) error { _, err := s.store.QuotaCount(ctx, s.productID); return err })
			return err
		},
		func() error {
			return b.metered(s, fmt.Sprint("admit, ", heavy), func() (n int, err error) {
				res.heavy, err = heavy.read(ctx, admit)
				return len(res.heavy.latency), err
			})
		},
		func() error {
			return b.metered(s, fmt.Sprintf("three direct calls, %d callers without a pause", callers), func() (n int, err error) {
				res.direct, err = closedLoop(ctx, func(ctx context.Context, n int) error { return direct.ask(ctx, engines[n%len(engines)]) })
				return len(res.direct.latency), err
			})
		},
		func() error {
			return b.metered(s, fmt.Sprintf("admit, %d callers without a pause", callers), func() (n int, err error) {
				res.admitted, err = closedLoop(ctx, admit)
				return len(res.admitted.latency), err
			})
		},
		func() (err error) { res.running, err = s.rssMiB(); return err },
		func() error {
			return each(ctx, users, fleetAtOnce, func(ctx context.Context, user string) error { return destroyOf(s.Client, user)(ctx) })
		},
		func() (err error) { res.end, err = s.rssMiB(); return err },
	})
	return res, err
}
