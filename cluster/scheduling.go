package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Scheduling is how Nomad schedules on a node.
type Scheduling struct {
	Eligible bool
	// Draining: Nomad empties the node, by Until (zero: it waits for as long as it takes).
	// Forced: without a wait. IgnoreSystemJobs: system jobs stay.
	Draining, Forced, IgnoreSystemJobs bool
	Until                              time.Time
	// Evacuated: the service began the node's last drain, or began it again, when it had
	// evacuated the node (DrainAgain).
	Evacuated bool
}

// evacuatedMeta is metadata of a drain that the service began.
const evacuatedMeta = "orch_evacuated"

// Scheduling reads how Nomad schedules on a node. ErrNotFound: Nomad does not know it.
func (c *Cluster) Scheduling(ctx context.Context, nodeID string) (*Scheduling, error) {
	n, err := c.nodeInfo(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	s := &Scheduling{Eligible: n.SchedulingEligibility == api.NodeSchedulingEligible && !n.Drain, Draining: n.DrainStrategy != nil}
	if d := n.DrainStrategy; d != nil {
		s.Forced, s.IgnoreSystemJobs, s.Until = d.Deadline < 0, d.IgnoreSystemJobs, d.ForceDeadline.UTC().Truncate(time.Second)
	}
	if n.LastDrain != nil {
		s.Evacuated = n.LastDrain.Meta[evacuatedMeta] != ""
	}
	return s, nil
}

// MakeEligible ends a drain of a node, and lets Nomad place allocations there. ErrDenied: the
// service's token may not do that (node policy "write").
func (c *Cluster) MakeEligible(ctx context.Context, nodeID string, draining bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	if draining {
		_, err = c.client.Nodes().UpdateDrainOpts(nodeID, &api.DrainOptions{MarkEligible: true}, c.write(ctx))
	} else {
		_, err = c.client.Nodes().ToggleEligibility(nodeID, true, c.write(ctx))
	}
	return classify(err)
}

// MakeIneligible keeps Nomad from placing allocations on a node.
func (c *Cluster) MakeIneligible(ctx context.Context, nodeID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Nodes().ToggleEligibility(nodeID, false, c.write(ctx))
	return classify(err)
}

// DrainAgain begins a drain that MakeEligible had ended, with what is left of its time.
func (c *Cluster) DrainAgain(ctx context.Context, nodeID string, until time.Time, ignoreSystemJobs bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	spec := &api.DrainSpec{IgnoreSystemJobs: ignoreSystemJobs}
	if !until.IsZero() {
		spec.Deadline = max(time.Second, time.Until(until))
	}
	_, err := c.client.Nodes().UpdateDrainOpts(nodeID, &api.DrainOptions{DrainSpec: spec, Meta: map[string]string{evacuatedMeta: "true"}}, c.write(ctx))
	return classify(err)
}
