package guard

import (
	"fmt"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// lineage is what two records of a deployment, the registry's and Vault's, mean
// when they are held against each other.
type lineage int

const (
	// lineageNew: neither store has a record. The deployment begins.
	lineageNew lineage = iota
	// lineageSame: both agree, or a leader died between raising one and the other.
	lineageSame
	// lineageBehind: the registry's epoch is behind Vault's: it was restored from an
	// older state.
	lineageBehind
	// lineageLost: the registry has no record, or that of another registry, and Vault
	// knows the deployment.
	lineageLost
	// lineageKeysBehind: Vault's epoch is behind the registry's, or it has no record
	// any more: it was restored from an older state, or emptied.
	lineageKeysBehind
	// lineageForeign: Vault's mount belongs to another deployment.
	lineageForeign
)

// compare says what the two records mean. where is what an operator chose for this
// service that tells one deployment from another. It is pure.
func compare(here *registry.Deployment, there *secrets.Deployment, where string) lineage {
	switch {
	case here.ID == "" && there.ID == "":
		return lineageNew
	case there.ID == "":
		return lineageKeysBehind
	case here.ID == "" && there.Where != where, here.ID != "" && here.ID != there.ID:
		return lineageForeign
	case here.ID == "" || here.Registry != there.Registry:
		return lineageLost
	case here.Epoch < there.Epoch && here.Raising != there.Epoch:
		return lineageBehind
	case here.Epoch > there.Epoch:
		return lineageKeysBehind
	}
	return lineageSame
}

// ForeignError says that the keys below the Vault mount are another deployment's.
// The service refuses to run on them.
type ForeignError struct {
	Ours, Theirs, Mount, Where, TheirWhere string
	// Live: the other deployment answered.
	Live bool
}

func (e *ForeignError) Error() string {
	ours := e.Ours
	if ours == "" {
		ours = "(none yet)"
	}
	text := fmt.Sprintf("the Vault mount %q belongs to deployment %s (%s), and this service is deployment %s (%s)", e.Mount, e.Theirs, e.TheirWhere, ours, e.Where)
	if e.Live {
		text = fmt.Sprintf("the Vault mount %q is in use by a running service of deployment %s with another registry (Consul)", e.Mount, e.Theirs)
	}
	return text + ": give each deployment a mount of its own (ORCH_VAULT_MOUNT), or let this service use the Consul and the ORCH_CONSUL_PREFIX of that deployment"
}
