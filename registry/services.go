package registry

import (
	"cmp"
	"context"
	"slices"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// ServiceIndex returns the CreateIndex of the newest instance of a service in Consul's
// catalog, or 0.
func (s *Store) ServiceIndex(ctx context.Context, name string) (uint64, error) {
	newest, _, err := s.newestInstance(ctx, name, 0)
	return newest, err
}

// AwaitService waits until Consul's catalog has an instance of a service that was
// registered after index. Nomad registers the service of a task as soon as its process was
// started, and again after a restart.
func (s *Store) AwaitService(ctx context.Context, name string, after uint64) error {
	var wait uint64
	for {
		newest, index, err := s.newestInstance(ctx, name, wait)
		if err != nil {
			return err
		}
		if newest > after {
			return nil
		}
		if index < wait { // the indexes of a restored Consul can be lower
			index = 0
		}
		wait = index
	}
}

// ServiceOf reports whether Consul's catalog has the instance of a service that Nomad
// registered for an allocation: its id contains the allocation's id (MakeAllocServiceID in
// Nomad's client/serviceregistration).
func (s *Store) ServiceOf(ctx context.Context, name, allocID string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	instances, _, err := s.client.Catalog().Service(name, "", (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, unavailable(err)
	}
	return slices.ContainsFunc(instances, func(i *consul.CatalogService) bool { return allocOf(i.ServiceID) == allocID }), nil
}

// Served reports whether Consul's catalog has any instance of a service.
func (s *Store) Served(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	instances, _, err := s.client.Catalog().Service(name, "", (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, unavailable(err)
	}
	return len(instances) > 0, nil
}

// allocOf returns the allocation that Nomad registered a service for; "": Nomad did not
// register it.
func allocOf(serviceID string) string {
	const prefix, length = "_nomad-task-", 36
	rest, found := strings.CutPrefix(serviceID, prefix)
	if !found || len(rest) <= length || rest[length] != '-' {
		return ""
	}
	return rest[:length]
}

// newestInstance waits until the catalog has changed since index, unless that is 0, at most
// mirrorWait.
func (s *Store) newestInstance(ctx context.Context, name string, index uint64) (newest, now uint64, err error) {
	within := callTimeout
	if index > 0 {
		within += mirrorWait
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	instances, meta, err := s.client.Catalog().Service(name, "", (&consul.QueryOptions{WaitIndex: index, WaitTime: mirrorWait}).WithContext(ctx))
	if err != nil {
		return 0, 0, unavailable(err)
	}
	for _, i := range instances {
		newest = max(newest, i.CreateIndex)
	}
	return newest, meta.LastIndex, nil
}

// KeyChecksum is the service meta with the checksum of the key whose hash Nomad gave the
// process when it started it (secrets.Checksum). Nomad registers a service only after its
// process has started, and with the environment of that process.
const KeyChecksum = "key_checksum"

// Instance is the service that Nomad registered for an allocation, as Consul has it.
type Instance struct {
	// Standing is that of all its checks together. Absent: none of them has run since
	// the process was started.
	Standing Standing
	// Output is what a check reported: one that fails, or else any.
	Output string
	// KeyChecksum is the meta of that name; "": its job does not set it.
	KeyChecksum string
}

// InstanceOf reads the service that Nomad registered for an allocation. ErrNotFound: there
// is none, because the process has not started yet, has ended or is being restarted.
func (s *Store) InstanceOf(ctx context.Context, name, allocID string) (*Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	entries, _, err := s.client.Health().Service(name, "", false, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, unavailable(err)
	}
	for _, e := range entries {
		if allocOf(e.Service.ID) == allocID {
			return instance(e), nil
		}
	}
	return nil, ErrNotFound
}

func instance(e *consul.ServiceEntry) *Instance {
	i := &Instance{KeyChecksum: e.Service.Meta[KeyChecksum]}
	if strings.Contains(i.KeyChecksum, "${") { // nothing that Nomad could put in its place
		i.KeyChecksum = ""
	}
	passing, checks, failing, agentDead := 0, 0, "", false
	for _, check := range e.Checks {
		switch {
		case check.CheckID == serfHealth:
			agentDead = check.Status == consul.HealthCritical
			continue
		case check.ServiceID != e.Service.ID:
			continue
		case check.Status == consul.HealthPassing:
			passing++
		case check.Status == consul.HealthCritical:
			failing, i.Standing = check.Output, Critical
		}
		checks++
		i.Output = check.Output
	}
	i.Output = cmp.Or(failing, i.Output)
	switch {
	case agentDead:
		i.Standing = Unknown
	case i.Standing == Critical:
	case checks > 0 && passing == checks:
		i.Standing = Passing
	default:
		i.Standing = Absent
	}
	return i
}
