package idle

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Deps are the dependencies of a Sleeper.
type Deps struct {
	Log     hclog.Logger
	Replica Replica
	Store   Store
	Rows    Rows
	Nodes   Nodes
	Engines Engines
	// Timeout is the time without an admit after which an engine is put to sleep, unless
	// its product's policy sets it; 0: never.
	Timeout time.Duration
}

// Replica reports whether this replica leads.
type Replica interface {
	Leader() bool
}

// Store contains the replicas' reports, and the rows that are marked.
type Store interface {
	Activity(ctx context.Context) (*registry.Activity, error)
	Products(ctx context.Context) ([]*engine.Product, []*registry.Unreadable, error)
	ProposeSleep(ctx context.Context, row *engine.Row) error
}

// Rows is the view of the rows.
type Rows interface {
	Synced() <-chan struct{}
	Awake() []*engine.Row
}

// Nodes is the view of the nodes.
type Nodes interface {
	Node(id string) (cluster.Node, bool)
}

// Engines is data about engines, and what can be done to them.
type Engines interface {
	// Whole reports whether the registry is complete.
	Whole() bool
	// Fresh reports whether the views of rows and nodes are current enough.
	Fresh() bool
	// MayChange returns an error if no engine may be put to sleep, because that could not
	// be audited or carried out.
	MayChange(ctx context.Context) error
	// Busy checks whether an engine is working between requests.
	Busy(ctx context.Context, row *engine.Row) (bool, error)
	// PutToSleep begins to put an engine to sleep, if row is its current row, after this
	// time without use; frozen: its process is kept. The channel is closed at the end; it
	// is nil if another replica continues. registry.ErrConflict: the row has changed.
	PutToSleep(ctx context.Context, row *engine.Row, idle time.Duration, frozen bool) (<-chan struct{}, error)
	// KeepFromSleep removes the mark from a row. registry.ErrConflict.
	KeepFromSleep(ctx context.Context, row *engine.Row) error
}
