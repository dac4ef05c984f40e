package guard

import (
	"fmt"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// lineage is what the two records of a deployment, in the registry and in Vault, mean
// together.
type lineage int

const (
	// lineageNew: neither store has a record, so the deployment is new.
	lineageNew lineage = iota
	// lineageSame: both agree, or a leader died between its two writes.
	lineageSame
	// lineageBehind: the registry's epoch is lower than Vault's, so the registry was
	// restored from an older state.
	lineageBehind
	// lineageLost: the registry has no record, or that of another registry, but Vault knows
	// the deployment.
	lineageLost
	// lineageKeysBehind: Vault's epoch is lower than the registry's, or Vault has no
	// record, so Vault was restored from an older state, or emptied.
	lineageKeysBehind
	// lineageForeign: Vault's mount belongs to another deployment.
	lineageForeign
)

// compare returns what the two records mean. where distinguishes deployments by what an
// operator configured. It is pure.
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

// ForeignError reports that the keys below the Vault mount belong to another deployment, so the service
// refuses to run.
type ForeignError struct {
	Ours, Theirs, Mount, Where, TheirWhere string
	// Live: the other deployment has responded.
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
	return text + ": set another mount for this deployment (ORCH_VAULT_MOUNT), or use the Consul and the ORCH_CONSUL_PREFIX of that deployment"
}
