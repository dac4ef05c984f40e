package scheduler

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

// warnOfOldServers logs each version of the Nomad servers that can accept two registrations
// at one index. It reads them only if the service's token allows that, and nothing depends
// on the result.
func (s *Scheduler) warnOfOldServers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	servers, err := s.cluster.Client().Agent().MembersOpts((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return
	}
	for _, old := range oldServers(servers.Members) {
		s.log.Warn("Nomad servers of this version can accept two registrations of a job at one index: the service reads each registration back to make sure that it is the only one; upgrade to a newer version, see docs/install.md",
			"version", old.Original(), "recommended", nomadRecommended.Original())
	}
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
