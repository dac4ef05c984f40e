package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/nomad-jobs"
)

// Run works until ctx ends, and returns when everything that it started has stopped. It
// returns early with an error only if the engine's job file breaks a rule
// (*jobs.RulesError), if the keys in Vault belong to another deployment
// (*guard.ForeignError), or if Nomad's ACLs are off and that is not permitted
// (cluster.ErrOpen). Operations in progress are interrupted at their next step; call
// Drain first to let them finish.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ops.Start(ctx)

	// The session ends after the operations, because their last writes need it.
	session, leave := context.WithCancel(context.WithoutCancel(ctx))
	left := make(chan struct{})
	go func() { defer close(left); s.replica.Run(session) }()

	var loops sync.WaitGroup
	loops.Go(func() { s.cluster.Run(ctx) })
	loops.Go(func() { s.mirror.Run(ctx) })
	loops.Go(func() { s.health.Run(ctx) })
	loops.Go(func() { s.ops.Run(ctx) })
	loops.Go(func() { s.pool.Run(ctx) })
	loops.Go(func() { s.warm.run(ctx) })
	loops.Go(func() { s.warm.followTags(ctx) })
	loops.Go(func() { s.labelLoop(ctx) })
	loops.Go(func() { s.monitor.Run(ctx) })
	loops.Go(func() { s.unreachableLoop(ctx) })
	loops.Go(func() { s.activity.Run(ctx, s.store, s.log) })
	loops.Go(func() { s.sleeper.Run(ctx) })
	loops.Go(func() { s.reconcile.Run(ctx) })
	loops.Go(func() { s.reconcile.Listen(ctx) })
	loops.Go(func() { s.rolloutLoop(ctx) })
	loops.Go(func() { s.schedule.run(ctx) })
	loops.Go(func() { newLostNodes(s).run(ctx) })
	loops.Go(func() { newEvacuations(s).run(ctx) })
	loops.Go(func() { newDrills(s).run(ctx) })

	var foreign error
	loops.Go(func() {
		if foreign = s.guard.Run(ctx); foreign != nil {
			cancel()
		}
	})

	err := s.prepare(ctx)
	if err == nil {
		<-ctx.Done()
	}
	cancel()
	s.ops.Wait()
	loops.Wait()
	leave()
	<-left
	return errors.Join(err, foreign)
}

// prepare checks that Nomad's ACLs are on, lets Nomad parse the job file and writes the
// provider keys to Vault. It retries until all that succeeds. Before that, nothing can be
// registered in Nomad.
func (s *Scheduler) prepare(ctx context.Context) error {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 15*time.Second) {
		err := s.prepareOnce(ctx)
		var rules *jobs.RulesError
		switch {
		case err == nil:
			return nil
		case asRules(err, &rules):
			return rules
		case errors.Is(err, cluster.ErrOpen):
			return fmt.Errorf("%w: any engine could use the task API (/secrets/api.sock) to run commands as root on its node and to read the secrets of all engines; turn ACLs on (docs/install.md), or set ORCH_ALLOW_OPEN_NOMAD=true if no engine is to be protected from another one", err)
		}
		s.log.Warn("not ready for provisions yet; retrying", "error", err, "in", wait.String())
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

func (s *Scheduler) prepareOnce(ctx context.Context) error {
	if !s.opts.AllowOpenNomad {
		if err := s.cluster.CheckACL(ctx); err != nil {
			return err
		}
	}
	if len(s.opts.ProviderKeys) > 0 {
		if err := s.guard.Owned(); err != nil {
			return err
		}
		version, written, err := s.vault.PutEnv(ctx, s.opts.ProviderKeys)
		if err != nil {
			return fmt.Errorf("write the provider keys: %w", err)
		}
		if written {
			s.log.Info("wrote the provider keys from this replica's environment to Vault; give them to running engines with `orch provider-keys apply`", "version", version)
		}
	}
	template, err := jobs.Parse(ctx, s.cluster.Client(), s.opts.Job)
	if err != nil {
		return err
	}
	s.template.Store(template)
	workers, err := jobs.ParseWorkers(ctx, s.cluster.Client(), jobs.WorkerSettings{
		HCL: nomadjobs.Brain, Driver: s.opts.Job.Driver, Namespace: s.opts.Job.Namespace, Program: s.opts.Snapshots.Worker, Deployment: s.opts.Job.Deployment,
	})
	if err != nil {
		return err
	}
	s.workers.Store(workers)
	s.warnOfUnprovable(ctx)
	return nil
}
