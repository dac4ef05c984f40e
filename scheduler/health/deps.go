package health

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler/boot"
)

// Deps are the dependencies of a Monitor.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Nomad   Nomad
	Checks  Checks
	Engines Engines
	Backoff engine.Backoff
	// MaxFailures is how many successive failed probes confirm that an engine fails,
	// ProbeTimeout the time limit of each, and CheckEvery the interval of probes of an
	// engine whose check nobody runs.
	MaxFailures              int
	ProbeTimeout, CheckEvery time.Duration
	// Subsystems are globs of the subsystems in an engine's /health that a restart may
	// repair.
	Subsystems []string
	// Detector asks engines, or Consul about them.
	Detector *boot.Detector
}

// Store is the registry: rows, and the record of a storm.
type Store interface {
	Engine(ctx context.Context, productID, userID string) (*engine.Row, error)
	Storm(ctx context.Context) (*registry.Storm, error)
	PutStorm(ctx context.Context, s *registry.Storm) error
	DeleteStorm(ctx context.Context, s *registry.Storm) error
	DeleteUnreadable(ctx context.Context, u *registry.Unreadable) error
}

// Rows is the view of the rows.
type Rows interface {
	All() []*engine.Row
}

// Nomad is the view of allocations, and Nomad's own data about them.
type Nomad interface {
	Newest(jobID string) (cluster.Alloc, bool)
	KnowsAlloc(jobID, allocID string) bool
	Watch(jobID string) *cluster.Watch
	ReadNode(ctx context.Context, id string) (*cluster.Node, error)
}

// Checks is the state of the engines' checks in Consul.
type Checks interface {
	Of(row *engine.Row) (registry.Standing, time.Time)
	FailsFor(row *engine.Row) time.Duration
	AgentDead(row *engine.Row) bool
}

// Engines is other data about engines, and what can be done to them.
type Engines interface {
	// Informed reports whether this replica leads and may act on its view.
	Informed() bool
	// NodeSilent reports whether a node does not report to Nomad's servers.
	NodeSilent(nodeID string) bool
	// BrainKnown reports whether Nomad knows the engine's volume.
	BrainKnown(ctx context.Context, row *engine.Row) (bool, error)
	// NoteUnproven records in the row an allocation whose end is not proved.
	NoteUnproven(row *engine.Row, alloc cluster.Alloc)
	// GoOn resumes a process that may be frozen.
	GoOn(ctx context.Context, row *engine.Row)
	// SettleFrozen ends the process of a sleeping engine that is not the frozen one.
	SettleFrozen(ctx context.Context, row *engine.Row) error
	// Restart gives a failed engine a new process, and Recover sets it to running with the
	// process that it has; both wait for the result.
	Restart(ctx context.Context, row *engine.Row, canary bool) error
	Recover(ctx context.Context, row *engine.Row, crash int64) error
	// Update writes a row that the service itself changed, with an audit row.
	Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error
	// Begin and Complete write and complete an audit row that concerns no engine.
	Begin(ctx context.Context, action string, details map[string]any) (auditID int64, err error)
	Complete(ctx context.Context, auditID int64, took time.Duration)
	// Overtaken reports whether an error means that a concurrent call was faster.
	Overtaken(err error) bool
}
