package pool

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
)

// Deps are what the pool works with.
type Deps struct {
	Log   hclog.Logger
	Store Store
	Nomad Nomad
	// Size is how many volumes each node keeps, Driver what a node must have.
	Size   int
	Driver jobs.Driver
	// Leads says whether this replica is to fill the pool now.
	Leads func() bool
	// Template is the engine's job file; nil: it is not parsed yet.
	Template func() *jobs.Template
	// NewID returns an engine_id that was never used.
	NewID func() string
}

// Store is where the entries of the pool are.
type Store interface {
	PooledVolumes(ctx context.Context) ([]*registry.PooledVolume, []*registry.Unreadable, error)
	PooledVolumesOn(ctx context.Context, nodeID string) ([]*registry.PooledVolume, error)
	PutPooledVolume(ctx context.Context, v *registry.PooledVolume) error
	DeletePooledVolume(ctx context.Context, v *registry.PooledVolume) error
	DeleteUnreadable(ctx context.Context, u *registry.Unreadable) error
}

// Nomad is where the volumes are.
type Nomad interface {
	Node(id string) (cluster.Node, bool)
	Nodes() []cluster.Node
	Volume(ctx context.Context, id string) (*cluster.Volume, error)
	CreateVolume(ctx context.Context, name, nodeID string, params map[string]string) (*cluster.Volume, error)
	EnsureVolume(ctx context.Context, name, nodeID string, params map[string]string) (*cluster.Volume, error)
	DeleteVolumes(ctx context.Context, name string) error
}
