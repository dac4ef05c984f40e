// Package scheduler is the life of an engine: it provisions, starts, stops, re-keys and
// destroys engines as operations that survive a crash between any two of their steps.
//
// An operation first writes itself into the engine's row by check-and-set. It then acts
// under names derived from the engine_id, records each step and each id that it gets, and
// finally closes itself. A replica that finds an operation with a dead owner continues it
// from its step.
package scheduler

import (
	"context"
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
	"github.com/septemberai/orch/scheduler/operation"
	"github.com/septemberai/orch/scheduler/pool"
	"github.com/septemberai/orch/scheduler/reconcile"
	"github.com/septemberai/orch/secrets"
)

// Options are an operator's settings for engines.
type Options struct {
	Job          jobs.Settings
	DefaultImage string
	// KeyProofPath is the path on which engines prove their keys, unless their product's
	// policy sets one.
	KeyProofPath string
	// Digests resolves images; nil: all engines are started by the name of their image,
	// even those that have a digest.
	Digests Digests
	// Resources are an engine's resources, unless its product's policy sets them.
	Resources    engine.Resources
	BootTimeout  time.Duration
	ProbeTimeout time.Duration
	// Detection is who reports that an engine is usable, and how it is.
	Detection boot.Detection
	// EngineCAs are the authorities of engines' certificates; nil: there are none.
	EngineCAs boot.Authorities
	// MaxFailures is the number of successive failed probes after which an engine is
	// failed.
	MaxFailures int
	Restart     engine.Backoff
	// RestartSubsystems are globs of the subsystems in an engine's /health that a restart
	// may repair. An engine in which only other subsystems fail is not restarted.
	RestartSubsystems []string
	// VolumePool is the number of ready, empty volumes per node.
	VolumePool int
	// WarmPool is the number of warm engines of the default kind.
	WarmPool int
	// IdleTimeout is the time without an admit after which an engine is put to sleep,
	// unless its product's policy sets it; 0: never.
	IdleTimeout time.Duration
	// ReconcileInterval is the time between two full passes of the leader. OrphanGrace is
	// how long an object without a row is kept before it is removed.
	ReconcileInterval, OrphanGrace time.Duration
	// AllowOpenNomad permits a Nomad without ACLs.
	AllowOpenNomad bool
	// ProviderKeys are the secrets that engines get in their environment.
	ProviderKeys map[string]string
	// MoveOnDrain: engines of a node that an operator drains are moved to other nodes.
	MoveOnDrain bool
	// EvacuateParallel is how many engines of a node are moved at once.
	EvacuateParallel int
	// Snapshots says where snapshots are and how they are made.
	Snapshots Snapshots
	// Observer is told about what the scheduler does; nil: nobody.
	Observer Observer
}

// Observer is told about what the scheduler does, for metrics. Its methods must not wait.
type Observer interface {
	// Operation is called when an operation ended on this replica.
	Operation(operation.Outcome)
	// Pass is called after each full pass of reconcile, and Action after each action that a
	// pass tried.
	Pass(took time.Duration)
	Action(act reconcile.Act, err error)
}

// Scheduler runs operations on engines. Its methods are safe for concurrent use after Run
// was called.
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
	detector    *boot.Detector
	starts      *boot.Starts
	evacuating  sync.Map // ids of nodes from which engines are moved away
	unreached   sync.Map // ids of nodes whose engines this replica could not reach, as already reported
	agents      agentNames
	checks      backendChecks
	lacks       atomic.Pointer[map[string]bool] // see Lacks

	activity *idle.Activity // of this replica
	sleeper  *idle.Sleeper  // of the leader

	template  atomic.Pointer[jobs.Template]
	workers   atomic.Pointer[jobs.Workers]
	pool      *pool.Volumes
	warm      *warmPool
	monitor   *health.Monitor
	reconcile *reconcile.Reconciler
	prover    *prover
	schedule  *snapshotSchedule
	rollout   chan struct{} // contains a token if provider keys are to be rolled out

	// productIDs caches which product a platform key hash belongs to. It only saves a read,
	// because each call verifies the pair.
	productIDs sync.Map

	guard     *guard.Guard
	mendAsked atomic.Int64 // when a pass was last requested because of a damaged record, as time.Time.UnixNano
	witnessed sync.Map     // the revision in the witness of each product, by its id

	ops *operation.Machine // of this replica

	mu           sync.Mutex
	contradicted map[string]bool // engine_ids whose row and secret name different owners, as already reported
}

// New returns a scheduler. It works after Run was called.
func New(opts Options, store *registry.Store, c *cluster.Cluster, v *secrets.Vault, a *audit.Log, log hclog.Logger) *Scheduler {
	s := &Scheduler{
		opts: opts, log: log, store: store, cluster: c, vault: v, audit: a,
		mirror: store.NewMirror(log.Named("mirror")), limiter: store.NewLimiter(), health: store.NewChecks(time.Duration(opts.Job.CheckIntervalS)*time.Second, log.Named("checks")),
		replica:      store.Join(log.Named("replica")),
		probe:        boot.NewProber(opts.ProbeTimeout, opts.EngineCAs),
		contradicted: map[string]bool{},
	}
	var observed func(operation.Outcome)
	var passed func(time.Duration)
	var acted func(reconcile.Act, error)
	if o := opts.Observer; o != nil {
		observed, passed, acted = o.Operation, o.Pass, o.Action
	}
	s.ops = operation.New(operation.Deps{
		Log: log, Store: store, Rows: s.mirror, Owner: driving{s}, Replica: s.replica.ID, Plans: &plans,
		BootTimeout: opts.BootTimeout, Restart: opts.Restart, Observe: observed,
	})
	s.guard = guard.New(guard.Deps{
		Log: log, Store: store, Vault: v, Rows: s.mirror, Replica: s.replica, Where: where(opts.Job), NewID: newID, Background: s.ops.Background,
		Lost: s.lost, Recovering: errRecovering, Away: away,
	})
	s.starts = boot.NewStarts(store, opts.Job.Driver == jobs.Docker)
	s.detector = boot.NewDetector(opts.Detection, s.probe, store, s.starts)
	s.checks.ping = map[string]func(context.Context) error{"nomad": c.Ping, "consul": store.Ping, "vault": v.Ping, "audit": a.Ping}
	s.pool = pool.NewVolumes(pool.Deps{
		Log: log, Store: store, Nomad: c, Size: opts.VolumePool, Driver: opts.Job.Driver, Template: s.template.Load, NewID: s.newEngineID,
		Leads: func() bool { return s.Ready() == nil && s.guard.OK() && s.replica.Leader() },
	})
	s.warm = newWarmPool(s)
	s.monitor = health.New(health.Deps{
		Log: log, Store: store, Rows: s.mirror, Nomad: c, Checks: s.health, Engines: healing{s}, Backoff: opts.Restart,
		MaxFailures: opts.MaxFailures, ProbeTimeout: opts.ProbeTimeout, CheckEvery: time.Duration(opts.Job.CheckIntervalS) * time.Second,
		Subsystems: opts.RestartSubsystems, Detector: s.detector,
	})
	s.activity = idle.NewActivity(s.replica.Session)
	s.sleeper = idle.NewSleeper(idle.Deps{
		Log: log, Replica: s.replica, Store: store, Rows: s.mirror, Nodes: c, Engines: idleEngines{s}, Timeout: opts.IdleTimeout,
	})
	s.reconcile = reconcile.New(reconcile.Deps{
		Log: log, Store: store, Rows: s.mirror, Nomad: c, Vault: v, Checks: s.health, Pool: s.pool, Guard: s.guard, Engines: reconciling{s}, Owners: owning{s},
		Deployment: opts.Job.Deployment, Interval: opts.ReconcileInterval, Grace: opts.OrphanGrace, KillWithin: killGrace + killMargin, Undone: undone(),
		Passed: passed, Acted: acted,
	})
	s.rollout = make(chan struct{}, 1)
	s.prover = newProver(s)
	s.schedule = newSnapshotSchedule(s)
	return s
}

// Retire hands the leader's work to another replica, at once and permanently, because
// operations in progress here may take long.
func (s *Scheduler) Retire(ctx context.Context) {
	s.guard.Retire(ctx)
	if err := s.replica.Retire(ctx); err != nil {
		s.log.Warn("cannot give up the lead; it ends with the session", "error", err)
	}
}

// Drain refuses new operations, and waits until those in progress have a result or ctx
// ends.
func (s *Scheduler) Drain(ctx context.Context) { s.ops.Drain(ctx) }

// LongestOperation returns the maximum time that an operation's caller can wait for a
// response. The server's write timeout is derived from it.
func (s *Scheduler) LongestOperation() time.Duration { return s.ops.Longest() }

// Ready returns nil if provisions can work, or what is missing.
func (s *Scheduler) Ready() error {
	select {
	case <-s.replica.Joined():
	default:
		return s.replica.Absent()
	}
	select {
	case <-s.cluster.Synced():
	default:
		return fmt.Errorf("%w: nodes and allocations have not been read yet", cluster.ErrUnavailable)
	}
	if _, err := s.jobFile(); err != nil {
		return err
	}
	if s.guard.ID() == "" {
		return fmt.Errorf("%w: the deployment's records in the registry and Vault have not been read yet", secrets.ErrUnavailable)
	}
	return nil
}

// jobFile returns the parsed job file of engines. cluster.ErrUnavailable: Nomad has not
// parsed it yet.
func (s *Scheduler) jobFile() (*jobs.Template, error) {
	if t := s.template.Load(); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
}

// PooledVolumes returns how many ready, unclaimed volumes this replica last saw.
func (s *Scheduler) PooledVolumes() int { return s.pool.Count() }
