package health

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Deps are what the monitor works with.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Rows    Rows
	Nomad   Nomad
	Checks  Checks
	Engines Engines
	Backoff engine.Backoff
	// MaxFailures is how many probes in a row confirm that an engine fails, ProbeTimeout
	// what each may take, and CheckEvery the time between two of an engine whose check
	// nobody runs.
	MaxFailures              int
	ProbeTimeout, CheckEvery time.Duration
	// Subsystems are globs of those in an engine's /health that a restart may mend.
	Subsystems []string
}

// Store is the registry: rows, and the note of a storm.
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

// Nomad is the view of allocations, and Nomad's own word of them.
type Nomad interface {
	Newest(jobID string) (cluster.Alloc, bool)
	KnowsAlloc(jobID, allocID string) bool
	Watch(jobID string) *cluster.Watch
	ReadNode(ctx context.Context, id string) (*cluster.Node, error)
}

// Checks is how the engines' checks in Consul stand.
type Checks interface {
	Of(row *engine.Row) (registry.Standing, time.Time)
	AgentDead(row *engine.Row) bool
}

// Engines is what is known of engines besides, and what is done to them.
type Engines interface {
	// Informed says whether this replica leads and its view is fit to act upon.
	Informed() bool
	// nodeSilent says whether the servers do not hear from a node.
	NodeSilent(nodeID string) bool
	// BrainKnown says whether Nomad knows the engine's volume.
	BrainKnown(ctx context.Context, row *engine.Row) (bool, error)
	// NoteUnproven notes in the row an allocation whose end nobody has proved.
	NoteUnproven(row *engine.Row, alloc cluster.Alloc)
	// GoOn has a process go on that may be frozen.
	GoOn(ctx context.Context, row *engine.Row)
	// SettleFrozen ends the process of an engine that sleeps, which is not the one that
	// was frozen.
	SettleFrozen(ctx context.Context, row *engine.Row) error
	// Restart gives a failed engine a new process, and Recover takes the one that it has
	// for running again; they wait for how that ends.
	Restart(ctx context.Context, row *engine.Row, canary bool) error
	Recover(ctx context.Context, row *engine.Row, crash int64) error
	// Update writes a row that the service itself changed, with an audit row.
	Update(ctx context.Context, row *engine.Row, action string, details map[string]any) error
	// Begin and Complete write the two halves of an audit row that is of no engine.
	Begin(ctx context.Context, action string, details map[string]any) (auditID int64, err error)
	Complete(ctx context.Context, auditID int64, took time.Duration)
	// Overtaken says whether an error means that another call was faster.
	Overtaken(err error) bool
}
