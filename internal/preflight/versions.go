package preflight

import (
	"context"
	"slices"

	"github.com/hashicorp/go-version"
	"github.com/hashicorp/nomad/api"
)

var (
	// nomadChecksAtCommit is the first version of Nomad that compares the index of a
	// registration when it commits it. Older versions can accept two registrations at one
	// index; see cluster.Register.
	nomadChecksAtCommit = version.Must(version.NewVersion("2.0.1"))
	// nomadRecommended also contains the fixes of host volumes and of the docker driver in
	// docs/install.md.
	nomadRecommended = version.Must(version.NewVersion("2.0.5"))
)

// serverVersions checks the versions of the Nomad servers. It needs node:read.
func (s *Stores) serverVersions(ctx context.Context) []Result {
	r := Result{Store: "nomad", Needs: "servers of version " + nomadChecksAtCommit.Original() + " or newer", State: OK}
	servers, err := s.Nomad.Agent().MembersOpts((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return []Result{unreadable(r, err)}
	}
	if old := oldServers(servers.Members); len(old) > 0 {
		r.State, r.Said = Advice, "version "+old[0].Original()+" can accept two registrations of a job at one index; the service reads each registration back"
		r.Remedy = "upgrade to " + nomadRecommended.Original() + " (docs/install.md)"
	}
	return []Result{r}
}

// oldServers returns the versions below nomadChecksAtCommit, without duplicates, oldest
// first.
func oldServers(members []*api.AgentMember) []*version.Version {
	var old version.Collection
	for _, m := range members {
		v, err := version.NewVersion(m.Tags["build"])
		if err == nil && m.Status != "left" && v.LessThan(nomadChecksAtCommit) {
			old = append(old, v)
		}
	}
	slices.SortFunc(old, (*version.Version).Compare)
	return slices.CompactFunc(old, (*version.Version).Equal)
}
