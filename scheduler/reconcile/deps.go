package reconcile

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/witness"
	"github.com/septemberai/orch/secrets"
)

// Deps are the dependencies of a Reconciler.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Nomad   Nomad
	Vault   Vault
	Checks  Checks
	Pool    Pool
	Guard   Guard
	Engines Engines
	Owners  Owners
	// Deployment is the name of this deployment in the meta of its jobs.
	Deployment string
	// Interval is the time between two full passes of the leader, and Grace how long an
	// object without a row is kept before it is removed.
	Interval, Grace time.Duration
	// KillWithin limits the wait for a process to end after the signal.
	KillWithin time.Duration
	// Undone is the beginning of a destroy that undoes a provision: kind, first step, and
	// the error code for its caller.
	Undone engine.Operation
	// Passed is called after each full pass, with its duration, and Acted after each action
	// that was tried, with its error. nil: nobody is told.
	Passed func(took time.Duration)
	Acted  func(act Act, err error)
}

// Store is the registry.
type Store interface {
	Lists
	Records
	Recovered
}

// Lists are what a pass reads of the registry, and the requests for a pass.
type Lists interface {
	Orphans(ctx context.Context) ([]*registry.Orphan, error)
	PoolIDs(ctx context.Context) (map[string]bool, error)
	Engines(ctx context.Context) (rows []*engine.Row, unreadable []*registry.Unreadable, err error)
	UnreachableVolumes(ctx context.Context) ([]*registry.UnreachableVolume, []*registry.Unreadable, error)
	Products(ctx context.Context) (products []*engine.Product, unreadable []*registry.Unreadable, err error)
	Indexes(ctx context.Context) (*registry.Indexes, error)
	Quarantine(ctx context.Context) ([]*registry.Quarantined, error)
	Quotas(ctx context.Context) (map[string]registry.Quota, error)
	ReconcileRequested(ctx context.Context, index uint64) (uint64, error)
}

// Records are what a pass reads again before it acts, and what it writes.
type Records interface {
	Held(ctx context.Context, engineID string) (bool, error)
	Engine(ctx context.Context, productID, userID string) (*engine.Row, error)
	PutOrphan(ctx context.Context, o *registry.Orphan) error
	DeleteOrphan(ctx context.Context, o *registry.Orphan) error
	CorrectQuota(ctx context.Context, productID string, q registry.Quota, count int) error
	Mend(ctx context.Context, f registry.Fault) error
	RemoveUnreadable(ctx context.Context, u *registry.Unreadable) error
	DeleteUnreadable(ctx context.Context, u *registry.Unreadable) error
	Announce(ctx context.Context, productID, userID string) error
}

// Recovered is what a recovery additionally reads and writes.
type Recovered interface {
	Deployment(ctx context.Context) (*registry.Deployment, error)
	Tenant(ctx context.Context, productID string) (registry.Tenant, error)
	Tenants(ctx context.Context) (tenants []registry.Tenant, unreadable []*registry.Unreadable, err error)
	RestoreProduct(ctx context.Context, p, old *engine.Product) error
	DeleteProduct(ctx context.Context, productID string) error
	PooledVolumes(ctx context.Context) ([]*registry.PooledVolume, []*registry.Unreadable, error)
	DeletePooledVolume(ctx context.Context, v *registry.PooledVolume) error
	Rebuild(ctx context.Context, p *engine.Product, e, before *engine.Row) error
	Correct(ctx context.Context, e *engine.Row, oldID string, before *engine.Row) error
}

// Rows is the view of the rows.
type Rows interface {
	Unreadable(productID string) int
	Twins(engineID string) []*engine.Row
}

// Nomad reads and removes the parts of engines in Nomad.
type Nomad interface {
	witness.Nomad
	Age() time.Duration
	Jobs(ctx context.Context, prefix string, throttle cluster.Throttle) ([]*cluster.JobInfo, error)
	Volumes(ctx context.Context, throttle cluster.Throttle) ([]*cluster.Volume, error)
	KeyHashes(ctx context.Context, prefix string, throttle cluster.Throttle) ([]*cluster.VariableInfo, error)
	Watch(jobID string) *cluster.Watch
	ScaleToZero(ctx context.Context, id string, note jobs.Note, before func() error) (uint64, error)
	Purge(ctx context.Context, id string) error
	DeleteVariableAt(ctx context.Context, jobID string, index uint64) error
}

// Vault reads and writes the parts of engines and products in Vault.
type Vault interface {
	witness.Vault
	EngineIDs(ctx context.Context) ([]string, error)
	EngineKey(ctx context.Context, engineID string, number int, keyID string) (*secrets.EngineKey, error)
	NewestKey(ctx context.Context, engineID string) (*secrets.EngineKey, error)
	NewestVersion(ctx context.Context, engineID string) (int, error)
	HasKey(ctx context.Context, engineID string, number int, keyID string) (bool, error)
	DeleteEngine(ctx context.Context, engineID string) error
	ProductIDs(ctx context.Context) ([]string, error)
	Product(ctx context.Context, id string) (*secrets.Product, error)
}

// Checks is the state of the engines' checks in Consul.
type Checks interface {
	Passes(allocID string) bool
}

// Pool is the volume pool, which a pass notifies of entries that may have no volume.
type Pool interface {
	Suspect(engineIDs map[string]bool)
}

// Guard determines which deployment this is, and whether its registry is complete.
type Guard interface {
	ID() string
	Current() *registry.Deployment
	OK() bool
	// Forward reports whether the registry has certainly not gone back in time.
	Forward(ctx context.Context) bool
	StartRecovery(ctx context.Context, why string, back bool) error
	EndRecovery(ctx context.Context, record *registry.Deployment, done registry.Recovery) error
	NoteKeys(ctx context.Context, missing int) error
}

// Engines is other data about engines, and what can be done to them.
type Engines interface {
	// Ready reports whether this replica works, and Leads whether it leads.
	Ready() bool
	Leads() bool
	NodeSilent(nodeID string) bool
	// Request adds a new request id to the context of a pass.
	Request(ctx context.Context) context.Context
	// Audited makes a change of the service itself between beginning and completing its
	// audit row; without the row the change is not made.
	Audited(ctx context.Context, e audit.Entry, change func() error) error
	// Update writes a row that the service itself changed, with an audit row.
	Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error
	// EndProcess ends the process of an engine that is stopped or sleeping, and Destroy
	// finishes a destroy; both wait for the result. gone: according to the list of jobs, a
	// paused engine has no process any more.
	EndProcess(ctx context.Context, row *engine.Row, gone bool) error
	Destroy(ctx context.Context, row *engine.Row) error
	// Requeue makes the health monitor examine an engine at once.
	Requeue(engineID string)
	// DiscardWarm removes an engine that was never given to a user.
	DiscardWarm(ctx context.Context, row *engine.Row, why string)
	// VolumesOf lists the volumes of an engine, and RemoveVolume deletes one with its data;
	// its error says why that was not possible.
	VolumesOf(ctx context.Context, engineID string) ([]*cluster.Volume, error)
	RemoveVolume(ctx context.Context, v *cluster.Volume) error
	// ProveEnded proves that nothing is left of allocations that Nomad reports as ended.
	ProveEnded(ctx context.Context, jobID string, allocs []cluster.Alloc) error
	// Image and Resources are the defaults for an engine of a product.
	Image(p *engine.Product) (string, error)
	Resources(p engine.Policy) engine.Resources
}

// Owners checks and changes the owners of engines.
type Owners interface {
	// Quarantine leaves an engine to an admin, and Release undoes that.
	Quarantine(ctx context.Context, q *registry.Quarantined) error
	Release(ctx context.Context, q *registry.Quarantined) error
	// QuarantineTwins quarantines the engine of a row, if another row names it, too.
	QuarantineTwins(ctx context.Context, row *engine.Row) error
	// Contradict quarantines the engine of a row whose secret names another owner.
	Contradict(ctx context.Context, row *engine.Row, owner secrets.Owner)
	// Agree reports whether a secret and a row have the same owner. Settled is called when
	// they have again.
	Agree(k *secrets.EngineKey, row *engine.Row) bool
	Settled(engineID string)
	// Backfill writes the owner of a row's engine into its secret and its variable for the
	// first time, and ClaimAgain into a secret that went back in time.
	Backfill(ctx context.Context, row *engine.Row) error
	ClaimAgain(ctx context.Context, row *engine.Row) error
	// WitnessProducts writes the witnesses of products that changed.
	WitnessProducts(ctx context.Context) error
}
