package cluster

import (
	"context"
	"fmt"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// findAttributes records what lists of nodes do not contain: which of the nodes have the
// volume plugin, and the docker runtimes.
func (c *Cluster) findAttributes(ctx context.Context, nodes []*Node) error {
	if c.volumePlugin != Mkdir { // otherwise nodeFrom sets it
		has, err := c.nodesWith(ctx, fmt.Sprintf("%q in Attributes", c.pluginAttribute()))
		if err != nil {
			return err
		}
		for _, n := range nodes {
			n.VolumePlugin = has[n.ID]
		}
	}
	for _, name := range jobs.Runtimes() {
		has, err := c.nodesWith(ctx, fmt.Sprintf(`%q in Attributes and Attributes[%q] matches "(^|,)%s(,|$)"`, jobs.RuntimesAttribute, jobs.RuntimesAttribute, name))
		if err != nil {
			return err
		}
		for _, n := range nodes {
			n.Runtimes[name] = has[n.ID]
		}
	}
	return nil
}

// nodesWith returns the ids of the nodes that match a filter of Nomad's API.
func (c *Cluster) nodesWith(ctx context.Context, filter string) (map[string]bool, error) {
	has := map[string]bool{}
	_, err := c.pages(ctx, Unthrottled, (&api.QueryOptions{Filter: filter}).WithContext(ctx), func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.Nodes().List(q)
		for _, n := range stubs {
			has[n.ID] = true
		}
		return meta, err
	})
	return has, err
}
