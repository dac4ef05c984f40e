package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/nomad/api"
)

const namespaceRemedy = "nomad namespace apply deploy/nomad/engines.namespace.hcl, with the name of ORCH_NOMAD_NAMESPACE"

// namespaceDrivers checks which drivers jobs may use in the namespace of engines. A token
// with any right in the namespace may read that.
func (s *Stores) namespaceDrivers(ctx context.Context) []Result {
	if s.AllowOpenNomad {
		return nil // everybody may change the namespace
	}
	r := Result{Store: "nomad", Needs: fmt.Sprintf("namespace %q: enabled_task_drivers", s.Namespace), State: OK}
	found, _, err := s.Nomad.Namespaces().Info(s.Namespace, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return []Result{unreadable(r, err)}
	}
	var may api.NamespaceCapabilities
	if found.Capabilities != nil {
		may = *found.Capabilities
	}
	allowed := len(may.EnabledTaskDrivers) == 0 || slices.Contains(may.EnabledTaskDrivers, s.Driver)
	switch {
	case !allowed || slices.Contains(may.DisabledTaskDrivers, s.Driver):
		r.State, r.Said, r.Remedy = Missing, fmt.Sprintf("it does not allow the driver of engines, %s (ORCH_ENGINE_DRIVER)", s.Driver), namespaceRemedy
	case len(may.EnabledTaskDrivers) == 0:
		r.State, r.Said, r.Remedy = Advice, "jobs may use every driver of the nodes there", namespaceRemedy
	}
	return []Result{r}
}
