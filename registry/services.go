package registry

import (
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
