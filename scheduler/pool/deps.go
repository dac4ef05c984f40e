package pool

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

// Deps are the dependencies of the pool.
type Deps struct {
	Log   hclog.Logger
	Store Store
	Nomad Nomad
	// Size is the number of volumes per node, and Driver the task driver that a node must
	// have.
	Size   int
	Driver jobs.Driver
	// Leads reports whether this replica must fill the pool now.
	Leads func() bool
	// Template returns the engine's job file; nil: it is not parsed yet.
	Template func() *jobs.Template
	// NewID returns a new, unique engine_id.
	NewID func() string
}

// Store contains the entries of the pool.
type Store interface {
	PooledVolumes(ctx context.Context) ([]*registry.PooledVolume, []*registry.Unreadable, error)
	PooledVolumesOn(ctx context.Context, nodeID string) ([]*registry.PooledVolume, error)
	PutPooledVolume(ctx context.Context, v *registry.PooledVolume) error
	DeletePooledVolume(ctx context.Context, v *registry.PooledVolume) error
	DeleteUnreadable(ctx context.Context, u *registry.Unreadable) error
}

// Nomad contains the volumes.
type Nomad interface {
	Node(id string) (cluster.Node, bool)
	Nodes() []cluster.Node
	Volume(ctx context.Context, id string) (*cluster.Volume, error)
	CreateVolume(ctx context.Context, name, nodeID string, params map[string]string) (*cluster.Volume, error)
	EnsureVolume(ctx context.Context, name, nodeID string, params map[string]string) (*cluster.Volume, error)
	DeleteVolumes(ctx context.Context, name string) error
}
