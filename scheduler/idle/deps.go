package idle

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
)

// Deps are what a sleeper works with.
type Deps struct {
	Log     hclog.Logger
	Replica Replica
	Store   Store
	Rows    Rows
	Nodes   Nodes
	Engines Engines
	// Timeout is after how long without an admit an engine is put to sleep, where its
	// product's policy says nothing; 0: never.
	Timeout time.Duration
}

// Replica says whether this replica leads.
type Replica interface {
	Leader() bool
}

// Store is what the registry tells of who is in use, and where rows are marked.
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

// Engines is what engines are asked, and what is done to them.
type Engines interface {
	// Whole says whether the registry is whole.
	Whole() bool
	// Fresh says whether the views of rows and nodes are fit to be judged by.
	Fresh() bool
	// MayChange returns an error while nothing may be put to sleep: it could not be
	// audited, or not be carried out.
	MayChange(ctx context.Context) error
	// Busy asks an engine whether it works between requests.
	Busy(ctx context.Context, url string) (bool, error)
	// PutToSleep begins to put an engine to sleep whose row is the one that is given,
	// after so long without use; frozen: its process is to be kept. The channel is
	// closed when that has ended; it is nil where another replica goes on with it.
	// registry.ErrConflict: the row is not that one any more.
	PutToSleep(ctx context.Context, row *engine.Row, idle time.Duration, frozen bool) (<-chan struct{}, error)
	// KeepFromSleep takes the mark off a row. registry.ErrConflict.
	KeepFromSleep(ctx context.Context, row *engine.Row) error
}
