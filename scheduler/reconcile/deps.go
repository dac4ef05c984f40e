package reconcile

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Deps are what a reconciler works with.
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
	// Deployment is what the meta of this deployment's jobs names.
	Deployment string
	// Interval is the time between two full passes of the leader, and Grace how long what
	// has no row is left alone before it is removed.
	Interval, Grace time.Duration
	// KillWithin bounds the wait for a process to end, from the signal on.
	KillWithin time.Duration
	// Undone is how a destroy begins that undoes a provision: kind, first step, and the
	// code that its caller hears.
	Undone engine.Operation
}

// Store is the registry.
type Store interface {
	Lists
	Records
	Recovered
}

// Lists are what a pass reads of the registry, and who asked for one.
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

// Records are what a pass looks at once more before it acts, and what it writes.
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

// Recovered is what a recovery reads and writes besides.
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

// Nomad is what there is of engines in Nomad, and how it is removed.
type Nomad interface {
	Age() time.Duration
	Jobs(ctx context.Context, prefix string, throttle cluster.Throttle) ([]*cluster.JobInfo, error)
	Volumes(ctx context.Context, throttle cluster.Throttle) ([]*cluster.Volume, error)
	KeyHashes(ctx context.Context, prefix string, throttle cluster.Throttle) ([]*cluster.VariableInfo, error)
	Job(ctx context.Context, id string) (*api.Job, error)
	Volume(ctx context.Context, id string) (*cluster.Volume, error)
	Variable(ctx context.Context, jobID string) (*cluster.Variable, error)
	Watch(jobID string) *cluster.Watch
	ScaleToZero(ctx context.Context, id, mark, rest string, before func() error) (uint64, error)
	Purge(ctx context.Context, id string) error
	DeleteVariableAt(ctx context.Context, jobID string, index uint64) error
}

// Vault is what there is of engines and products in Vault.
type Vault interface {
	EngineIDs(ctx context.Context) ([]string, error)
	Keys(ctx context.Context, engineID string) ([]*secrets.EngineKey, error)
	EngineKey(ctx context.Context, engineID string, number int, keyID string) (*secrets.EngineKey, error)
	NewestKey(ctx context.Context, engineID string) (*secrets.EngineKey, error)
	NewestVersion(ctx context.Context, engineID string) (int, error)
	HasKey(ctx context.Context, engineID string, number int, keyID string) (bool, error)
	DeleteEngine(ctx context.Context, engineID string) error
	ProductIDs(ctx context.Context) ([]string, error)
	Product(ctx context.Context, id string) (*secrets.Product, error)
}

// Checks is how the engines' checks in Consul stand.
type Checks interface {
	Passes(allocID string) bool
}

// Pool is the pool of volumes: it is told which of its entries seem to have none.
type Pool interface {
	Suspect(engineIDs map[string]bool)
}

// Guard knows which deployment this is, and whether its registry is whole.
type Guard interface {
	ID() string
	Current() *registry.Deployment
	OK() bool
	// Forward says whether the registry has surely not gone back by now.
	Forward(ctx context.Context) bool
	StartRecovery(ctx context.Context, why string, back bool) error
	EndRecovery(ctx context.Context, record *registry.Deployment, done registry.Recovery) error
	NoteKeys(ctx context.Context, missing int) error
}

// Engines is what is known of engines besides, and what is done to them.
type Engines interface {
	// Ready says whether this replica works, and Leads whether it leads.
	Ready() bool
	Leads() bool
	NodeSilent(nodeID string) bool
	// Request gives a pass the id of a request.
	Request(ctx context.Context) context.Context
	// Audited makes a change that nobody asked for between the two halves of its audit
	// row; without a row it is not made.
	Audited(ctx context.Context, e audit.Entry, change func() error) error
	// Update writes a row that the service itself changed, with an audit row.
	Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error
	// EndProcess ends the process of an engine that is stopped or sleeping, and Destroy
	// finishes a destroy; they wait for how that ends. gone: the list of jobs says that a
	// paused one has none any more.
	EndProcess(ctx context.Context, row *engine.Row, gone bool) error
	Destroy(ctx context.Context, row *engine.Row) error
	// Requeue has the health side look at an engine at once.
	Requeue(engineID string)
	// DiscardWarm removes an engine that nobody was given.
	DiscardWarm(ctx context.Context, row *engine.Row, why string)
	// VolumesOf lists the volumes of an engine, and RemoveVolume deletes one with what is
	// in it: an error says why it is left.
	VolumesOf(ctx context.Context, engineID string) ([]*cluster.Volume, error)
	RemoveVolume(ctx context.Context, v *cluster.Volume) error
	// ProveEnded proves that nothing is left of allocations that Nomad says have ended.
	ProveEnded(ctx context.Context, jobID string, allocs []cluster.Alloc) error
	// Image and Resources are an engine's of a product when nothing else says them.
	Image(p *engine.Product) (string, error)
	Resources(p engine.Policy) engine.Resources
}

// Owners is whose the engines are.
type Owners interface {
	// Quarantine leaves an engine to an admin, and Release takes that back.
	Quarantine(ctx context.Context, q *registry.Quarantined) error
	Release(ctx context.Context, q *registry.Quarantined) error
	// QuarantineTwins does so with the engine of a row, if another names it, too.
	QuarantineTwins(ctx context.Context, row *engine.Row) error
	// Contradict does so with the engine of a row that is another owner's by its secret.
	Contradict(ctx context.Context, row *engine.Row, owner secrets.Owner)
	// Agree says whether a secret and a row are of one owner, and Settled hears that they
	// are again.
	Agree(k *secrets.EngineKey, row *engine.Row) bool
	Settled(engineID string)
	// Backfill writes the owner of a row's engine into its secret and its variable, for the
	// first time, and ClaimAgain into a secret that went back in time.
	Backfill(ctx context.Context, row *engine.Row) error
	ClaimAgain(ctx context.Context, row *engine.Row) error
	// WitnessProducts writes the witnesses of products that changed.
	WitnessProducts(ctx context.Context) error
}
