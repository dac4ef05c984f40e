// Package guard determines which deployment this is, and whether its registry is complete:
// it follows the deployment's record in Consul, compares it with the one in Vault,
// increments the epoch in both, and decides when the registry must be rebuilt.
package guard

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Deps are the dependencies of a Guard.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Vault   Vault
	Rows    Rows
	Replica Replica
	// Where distinguishes deployments by what an operator configured.
	Where string
	NewID func() string
	// Background runs a function in the background; false: the service is stopping.
	Background func(do func(context.Context)) bool
	// Lost reports whether an engine has a user according to its secret, but is not in the
	// registry.
	Lost func(ctx context.Context, engineID string) (bool, error)
	// Recovering is the error for callers while the registry is not known to be complete.
	// Away reports whether an error means that a store is unavailable.
	Recovering error
	Away       func(error) bool
}

// Store is the registry: the deployment's record, and signs that the registry went back in
// time.
type Store interface {
	Deployment(ctx context.Context) (*registry.Deployment, error)
	PutDeployment(ctx context.Context, d *registry.Deployment) error
	LeadDeployment(ctx context.Context, d *registry.Deployment) error
	Follow(d *registry.Deployment)
	ForgetCounts()
	WentBack() (why string, heard func())
	Back() <-chan struct{}
	PoolIDs(ctx context.Context) (map[string]bool, error)
	Traces(ctx context.Context) (map[string]bool, error)
}

// Vault is the deployment's record in Vault, and the engines that have a secret there.
type Vault interface {
	Deployment(ctx context.Context) (*secrets.Deployment, error)
	PutDeployment(ctx context.Context, d *secrets.Deployment) error
	EngineIDs(ctx context.Context) ([]string, error)
	Mount() string
	Forget()
}

// Rows is the view of the rows: Confirm checks that it has not gone back in time.
type Rows interface {
	Confirm(ctx context.Context) error
}

// Replica is this process as a replica.
type Replica interface {
	Joined() <-chan struct{}
	Absent() error
	Leader() bool
}
