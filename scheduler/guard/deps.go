// Package guard knows which deployment this is, and whether its registry is whole: it
// follows the deployment's record in Consul, holds it against the one in Vault, raises
// the epoch in both, and says when the registry has to be rebuilt.
package guard

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// Deps are what a guard works with.
type Deps struct {
	Log     hclog.Logger
	Store   Store
	Vault   Vault
	Rows    Rows
	Replica Replica
	// Where is what an operator chose that tells this deployment from another.
	Where string
	NewID func() string
	// Background does something apart from a call; false: this service ends.
	Background func(do func(context.Context)) bool
	// Lost says whether an engine has a user, by its secret, and nothing in the registry.
	Lost func(ctx context.Context, engineID string) (bool, error)
	// Recovering is what callers hear while the registry is not known to be whole, and
	// Away says whether an error means that a store does not do what it is there for.
	Recovering error
	Away       func(error) bool
}

// Store is the registry: the deployment's record, and what shows that it went back.
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

// Vault is the deployment's record in Vault, and which engines have a secret there.
type Vault interface {
	Deployment(ctx context.Context) (*secrets.Deployment, error)
	PutDeployment(ctx context.Context, d *secrets.Deployment) error
	EngineIDs(ctx context.Context) ([]string, error)
	Mount() string
	Forget()
}

// Rows is the view of the rows: Confirm says that it has not gone back by now.
type Rows interface {
	Confirm(ctx context.Context) error
}

// Replica is this one among the others.
type Replica interface {
	Joined() <-chan struct{}
	Leader() bool
}
