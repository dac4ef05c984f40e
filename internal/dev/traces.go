package dev

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// PooledVolumes returns how many ready volumes the service has.
func (s *System) PooledVolumes() int { return s.scheduler.PooledVolumes() }

// Traces returns what Nomad, Consul and Vault still contain of an engine.
func (s *System) Traces(ctx context.Context, engineID string) ([]string, error) {
	n, err := nomad.NewClient(s.Stack.NomadConfig())
	if err != nil {
		return nil, err
	}
	defer n.Close()
	name, q := "engine-"+engineID, (&nomad.QueryOptions{}).WithContext(ctx)
	var found []string
	jobs, _, err := n.Jobs().PrefixList(name)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	if len(jobs) > 0 {
		found = append(found, "nomad job")
	}
	variables, _, err := n.Variables().PrefixList("nomad/jobs/"+name, q)
	if err != nil {
		return nil, fmt.Errorf("list variables: %w", err)
	}
	if len(variables) > 0 {
		found = append(found, "nomad variable")
	}
	volumes, _, err := n.HostVolumes().List(&nomad.HostVolumeListRequest{}, q)
	if err != nil {
		return nil, fmt.Errorf("list host volumes: %w", err)
	}
	for _, v := range volumes {
		if v.Name == name {
			found = append(found, "host volume")
		}
	}
	v, err := s.Stack.VaultClient()
	if err != nil {
		return nil, err
	}
	secret, err := v.Logical().ReadWithContext(ctx, "orch/metadata/engines/"+engineID)
	if err != nil {
		return nil, fmt.Errorf("read the key's metadata: %w", err)
	}
	if secret != nil {
		found = append(found, "vault key")
	}
	c, err := consul.NewClient(s.Stack.ConsulConfig())
	if err != nil {
		return nil, err
	}
	pairs, _, err := c.KV().List("orch/", (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list rows: %w", err)
	}
	for _, p := range pairs {
		mark := strings.HasPrefix(p.Key, "orch/changes/") // records only that a shard changed
		if !mark && (strings.Contains(p.Key, engineID) || bytes.Contains(p.Value, []byte(engineID))) {
			found = append(found, "consul "+p.Key)
		}
	}
	return found, nil
}
