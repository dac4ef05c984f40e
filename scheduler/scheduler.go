// Package scheduler is the life of an engine: it provisions, starts, stops,
// re-keys and destroys engines as operations that survive a crash between any
// two of their steps.
//
// An operation first writes itself into the engine's row by check-and-set, then
// acts under names derived from the engine_id, noting each step and each id it
// learned, and closes itself. Whoever finds an operation whose owner is gone
// continues it from its step.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
	"github.com/septemberai/orch/scheduler/guard"
	"github.com/septemberai/orch/scheduler/health"
	"github.com/septemberai/orch/scheduler/idle"
	"github.com/septemberai/orch/scheduler/pool"
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

// Options are what an operator decides about engines.
type Options struct {
	Job          jobs.Settings
	DefaultImage string
	// KeyProofPath is where engines prove their keys, where their product's policy says
	// nothing.
	KeyProofPath string
	// Digests resolves images; nil: they are started as they are named, also those
	// of engines that have a digest.
	Digests Digests
	// Resources are an engine's, where its product's policy says nothing.
	Resources    engine.Resources
	BootTimeout  time.Duration
	ProbeTimeout time.Duration
	// MaxFailures is how many probes in a row confirm that an engine fails.
	MaxFailures int
	Restart     engine.Backoff
	// RestartSubsystems are globs of the subsystems in an engine's /health that a restart
	// may mend. One whose failing subsystems are all others is not restarted.
	RestartSubsystems []string
	// VolumePool is how many ready, empty volumes each node keeps.
	VolumePool int
	// WarmPool is how many engines of the standard kind run and wait for a user.
	WarmPool int
	// IdleTimeout is after how long without an admit an engine is put to sleep,
	// where its product's policy says nothing; 0: never.
	IdleTimeout time.Duration
	// ReconcileInterval is the time between two full passes of the leader, and
	// OrphanGrace how long what has no row is left alone before it is removed.
	ReconcileInterval, OrphanGrace time.Duration
	// ProviderKeys are the secrets that engines get in their environment.
	ProviderKeys map[string]string
}

// Scheduler runs operations on engines. All its methods may be called from any
// number of goroutines, once Run was called.
type Scheduler struct {
	opts        Options
	log         hclog.Logger
	store       *registry.Store
	replica     *registry.Replica
	cluster     *cluster.Cluster
	vault       *secrets.Vault
	audit       *audit.Log
	mirror      *registry.Mirror
	limiter     *registry.Limiter
	health      *registry.Checks
	bootLimiter boot.Limiter
	probe       *boot.Prober
	boots       *boot.Boots
	starts      *boot.Starts
	checks      backendChecks

	activity *idle.Activity // of this replica
	sleeper  *idle.Sleeper  // of the leader

	template  atomic.Pointer[jobs.Template]
	pool      *pool.Volumes
	warm      *warmPool
	monitor   *health.Monitor
	reconcile *reconcile.Reconciler
	prover    *prover
	rollout   chan struct{} // holds one token when provider keys are to be rolled out

	// productIDs remembers which product a platform key hash belongs to. It
	// only saves a read: each call verifies the pair anew.
	productIDs sync.Map

	guard     *guard.Guard
	mendAsked atomic.Int64 // when a damaged record last had a pass asked for, as time.Time.UnixNano
	witnessed sync.Map     // the revision of each product that has a witness, by its id

	mu           sync.Mutex
	active       map[string]*operation    // by engineKey
	launching    map[string]chan struct{} // by the operation's id
	contradicted map[string]bool          // engine_ids whose row and secret disagree, as was told
	draining     bool
	ops          sync.WaitGroup

	base context.Context // ends when the scheduler does
}

// New returns a scheduler; Run makes it work.
func New(opts Options, store *registry.Store, c *cluster.Cluster, v *secrets.Vault, a *audit.Log, log hclog.Logger) *Scheduler {
	s := &Scheduler{
		opts: opts, log: log, store: store, cluster: c, vault: v, audit: a,
		mirror: store.NewMirror(log.Named("mirror")), limiter: store.NewLimiter(), health: store.NewChecks(time.Duration(opts.Job.CheckIntervalS)*time.Second, log.Named("checks")),
		replica: store.Join(log.Named("replica")),
		probe:   boot.NewProber(opts.ProbeTimeout),
		active:  map[string]*operation{}, launching: map[string]chan struct{}{}, contradicted: map[string]bool{},
	}
	s.guard = guard.New(guard.Deps{
		Log: log, Store: store, Vault: v, Rows: s.mirror, Replica: s.replica, Where: where(opts.Job), NewID: newID, Background: s.background,
		Lost: s.lost, Recovering: errRecovering, Away: away,
	})
	s.boots = boot.NewBoots(s.probe)
	s.starts = boot.NewStarts(store, opts.Job.Driver == jobs.Docker)
	s.checks.ping = map[string]func(context.Context) error{"nomad": c.Ping, "consul": store.Ping, "vault": v.Ping, "audit": a.Ping}
	s.pool = pool.NewVolumes(pool.Deps{
		Log: log, Store: store, Nomad: c, Size: opts.VolumePool, Driver: opts.Job.Driver, Template: s.template.Load, NewID: s.newEngineID,
		Leads: func() bool { return s.Ready() == nil && s.guard.OK() && s.replica.Leader() },
	})
	s.warm = newWarmPool(s)
	s.monitor = health.New(health.Deps{
		Log: log, Store: store, Rows: s.mirror, Nomad: c, Checks: s.health, Engines: healing{s}, Backoff: opts.Restart,
		MaxFailures: opts.MaxFailures, ProbeTimeout: opts.ProbeTimeout, CheckEvery: time.Duration(opts.Job.CheckIntervalS) * time.Second,
		Subsystems: opts.RestartSubsystems,
	})
	s.activity = idle.NewActivity(s.replica.Session)
	s.sleeper = idle.NewSleeper(idle.Deps{
		Log: log, Replica: s.replica, Store: store, Rows: s.mirror, Nodes: c, Engines: idleEngines{s}, Timeout: opts.IdleTimeout,
	})
	s.reconcile = reconcile.New(reconcile.Deps{
		Log: log, Store: store, Rows: s.mirror, Nomad: c, Vault: v, Checks: s.health, Pool: s.pool, Guard: s.guard, Engines: reconciling{s}, Owners: owning{s},
		Deployment: opts.Job.Deployment, Interval: opts.ReconcileInterval, Grace: opts.OrphanGrace, KillWithin: killGrace + killMargin, Undone: undone(),
	})
	s.rollout = make(chan struct{}, 1)
	s.prover = newProver(s)
	return s
}

// Run works until ctx ends, and returns when all that it started has stopped.
// It returns early, with an error, only when the engine's job file breaks a
// rule (*jobs.RulesError), or when the keys in Vault are another deployment's
// (*guard.ForeignError). Operations under way are cut at their next step: call Drain
// first to let them finish.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.base = ctx
	s.mu.Unlock()

	// The session outlives the operations: their last writes need it.
	session, leave := context.WithCancel(context.WithoutCancel(ctx))
	left := make(chan struct{})
	go func() { defer close(left); s.replica.Run(session) }()

	var loops sync.WaitGroup
	loops.Go(func() { s.cluster.Run(ctx) })
	loops.Go(func() { s.mirror.Run(ctx) })
	loops.Go(func() { s.health.Run(ctx) })
	loops.Go(func() { s.recoverLoop(ctx) })
	loops.Go(func() { s.pool.Run(ctx) })
	loops.Go(func() { s.warm.run(ctx) })
	loops.Go(func() { s.warm.followTags(ctx) })
	loops.Go(func() { s.monitor.Run(ctx) })
	loops.Go(func() { s.unreachableLoop(ctx) })
	loops.Go(func() { s.activity.Run(ctx, s.store, s.log) })
	loops.Go(func() { s.sleeper.Run(ctx) })
	loops.Go(func() { s.reconcile.Run(ctx) })
	loops.Go(func() { s.reconcile.Listen(ctx) })
	loops.Go(func() { s.rolloutLoop(ctx) })

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
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.ops.Wait()
	loops.Wait()
	leave()
	<-left
	return errors.Join(err, foreign)
}

// prepare has Nomad parse the job file and puts the provider keys into Vault,
// as often as it takes.
func (s *Scheduler) prepare(ctx context.Context) error {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 15*time.Second) {
		err := s.prepareOnce(ctx)
		var rules *jobs.RulesError
		switch {
		case err == nil:
			return nil
		case asRules(err, &rules):
			return rules
		}
		s.log.Warn("not ready for provisions yet; trying again", "error", err, "in", wait.String())
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

func (s *Scheduler) prepareOnce(ctx context.Context) error {
	if len(s.opts.ProviderKeys) > 0 {
		if err := s.guard.Owned(); err != nil {
			return err
		}
		version, written, err := s.vault.PutEnv(ctx, s.opts.ProviderKeys)
		if err != nil {
			return fmt.Errorf("write the provider keys: %w", err)
		}
		if written {
			s.log.Info("wrote the provider keys of this replica's environment; running engines get them by `orch provider-keys apply`", "version", version)
		}
	}
	template, err := jobs.Parse(ctx, s.cluster.Client(), s.opts.Job)
	if err != nil {
		return err
	}
	s.template.Store(template)
	s.warnOfTemplateLimits(ctx)
	s.warnOfOldServers(ctx)
	s.warnOfUnprovable(ctx)
	return nil
}

// Retire gives the background work to another replica, at once and for good: what
// is in flight here may take long to end.
func (s *Scheduler) Retire(ctx context.Context) {
	s.guard.Retire(ctx)
	if err := s.replica.Retire(ctx); err != nil {
		s.log.Warn("cannot give up the lead; it ends with the session", "error", err)
	}
}

// Drain refuses new operations and waits until those under way have answered
// or ctx ends.
func (s *Scheduler) Drain(ctx context.Context) {
	s.mu.Lock()
	s.draining = true
	waiting := make([]*operation, 0, len(s.active))
	for _, o := range s.active {
		waiting = append(waiting, o)
	}
	s.mu.Unlock()
	for _, o := range waiting {
		select {
		case <-o.answered:
		case <-ctx.Done():
			return
		}
	}
}

// Ready says whether provisions can work: nil, or what is missing.
func (s *Scheduler) Ready() error {
	select {
	case <-s.replica.Joined():
	default:
		return registry.ErrNoSession
	}
	select {
	case <-s.cluster.Synced():
	default:
		return fmt.Errorf("%w: nodes and allocations are not read yet", cluster.ErrUnavailable)
	}
	if s.template.Load() == nil {
		return fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	if s.guard.ID() == "" {
		return fmt.Errorf("%w: which deployment this is was not read from the registry and Vault yet", secrets.ErrUnavailable)
	}
	return nil
}

// PooledVolumes is how many ready, unclaimed volumes this replica last saw.
func (s *Scheduler) PooledVolumes() int { return s.pool.Count() }
