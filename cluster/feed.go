package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	// streamSilence is the maximum time without a message in the event stream. Nomad sends
	// a heartbeat every 30 s (NewJsonStream in its nomad/event_endpoint.go); two of them
	// may be missed.
	streamSilence = 75 * time.Second
	// relistEvery limits how long the view can be wrong after a missed event. The stream is
	// a hint; the lists are the truth.
	relistEvery = 5 * time.Minute
	// reconnectDelay prevents a busy loop while Nomad is unavailable.
	reconnectDelay = time.Second
)

// Run keeps the view filled until ctx ends. It opens the event stream, lists nodes and
// allocations, drops events that are older than the lists, and starts over whenever the
// stream breaks, because events lost in between are not reported.
func (c *Cluster) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.follow(ctx)
		c.mu.Lock()
		c.live = false
		c.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.log.Warn("the event stream failed; reading all nodes and allocations again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectDelay):
		}
	}
}

// Synced returns a channel that is closed when the view was filled for the first time.
func (c *Cluster) Synced() <-chan struct{} { return c.synced }

// Live reports whether the view is following the event stream, as far as it knows. Even
// then the view is only a hint.
func (c *Cluster) Live() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// Age returns how long ago the last message from Nomad arrived.
func (c *Cluster) Age() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fresh.IsZero() {
		return time.Duration(1<<63 - 1)
	}
	return time.Since(c.fresh)
}

var errSilent = errors.New("the event stream sent nothing, not even a heartbeat")

// errNoByte: Nomad 1.11 responds with 200 and no data to a stream that it refuses. It does
// not close the connection; only the garbage collector of its Go runtime does, seconds or
// minutes later (EventStream in Nomad's command/agent/event_endpoint.go).
var errNoByte = errors.New("the event stream sent no data, although Nomad responds to other calls, so Nomad probably refuses it")

type eventBatch struct {
	Index  uint64
	Events []event
}

type event struct {
	Topic api.Topic
	Type  string
	Index uint64
	Key   string
	// FilterKeys of an evaluation are its job and its deployment.
	FilterKeys []string
	Payload    json.RawMessage
}

// follow reads one stream until it breaks, or until it is time for new lists.
func (c *Cluster) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	newest, err := c.newest(ctx)
	if err != nil {
		return err
	}
	// A stream that opens and then stalls counts as silent from this line on.
	silence := time.AfterFunc(c.silence, func() { cancel(errSilent) })
	defer silence.Stop()
	// A stream of all namespaces needs a right in each of them. What other namespaces have
	// on the nodes is known from the lists alone.
	q := (&api.QueryOptions{Namespace: c.namespace}).WithContext(ctx)
	// This client's options cannot name a topic twice; a query string can.
	stream, err := c.client.Raw().Response(fmt.Sprintf("/v1/event/stream?topic=Node&topic=Allocation&topic=Evaluation&topic=Job&index=%d", newest), q)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return classify(err)
	}
	defer func() { _ = stream.Close() }()
	listed, err := c.relist(ctx)
	if err != nil {
		return err
	}
	due := time.Now().Add(relistEvery)
	dec := json.NewDecoder(stream)
	for heard := false; time.Now().Before(due); heard = true {
		var batch eventBatch
		if err := dec.Decode(&batch); err != nil {
			switch {
			case !heard && (errors.Is(err, io.EOF) || errors.Is(context.Cause(ctx), errSilent)):
				return fmt.Errorf("%w: the token needs read-job in the namespace %s (ORCH_NOMAD_NAMESPACE), and node read", errNoByte, c.namespace)
			case errors.Is(err, io.EOF):
				return errors.New("the event stream ended")
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			return fmt.Errorf("event stream: %w", err)
		}
		silence.Reset(c.silence)
		if err := c.apply(&batch, listed); err != nil {
			return err
		}
		if err := c.missed(ctx, &batch); err != nil {
			return err
		}
	}
	return nil
}

// missed reads the allocations of deregistered jobs: Nomad removes those of a purged job at
// once, without an event.
func (c *Cluster) missed(ctx context.Context, batch *eventBatch) error {
	for _, e := range batch.Events {
		if e.Topic != api.TopicJob || e.Type != "JobDeregistered" && e.Type != "JobBatchDeregistered" || !c.lives(e.Key) {
			continue
		}
		w := c.Watch(e.Key)
		err := w.Refresh(ctx)
		w.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// lives reports whether the view knows an unfinished allocation of a job.
func (c *Cluster) lives(jobID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.view.byJob[jobID], func(a *Alloc) bool { return !a.Terminal() })
}

// newest returns an index that Nomad has just reached. Without an index the stream would
// begin with everything in the server's buffer (event_buffer_size; Subscribe in Nomad's
// nomad/stream), which is older than the lists and would be dropped.
func (c *Cluster) newest(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := (&api.QueryOptions{Namespace: api.AllNamespacesNamespace, PerPage: 1}).WithContext(ctx)
	_, meta, err := c.client.Allocations().List(q)
	if err != nil {
		return 0, classify(err)
	}
	return meta.LastIndex, nil
}

// relist reads all nodes and allocations, and returns the index up to which the lists are
// complete.
func (c *Cluster) relist(ctx context.Context) (uint64, error) {
	all := func() *api.QueryOptions {
		return &api.QueryOptions{Namespace: api.AllNamespacesNamespace, Params: map[string]string{"resources": "true"}}
	}
	var nodes []*Node
	nodesAt, err := c.pages(ctx, Unthrottled, all(), func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.Nodes().List(q)
		for _, n := range stubs {
			nodes = append(nodes, c.nodeFrom(n))
		}
		return meta, err
	})
	if err != nil {
		return 0, err
	}
	if err := c.findAttributes(ctx, nodes); err != nil {
		return 0, err
	}
	var allocs []*Alloc
	allocsAt, err := c.pages(ctx, Unthrottled, all(), func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.Allocations().List(q)
		for _, a := range stubs {
			allocs = append(allocs, allocFrom(a))
		}
		return meta, err
	})
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	evals := c.view.evals
	c.view = newView()
	c.view.evals = evals
	for _, n := range nodes {
		c.view.nodes[n.ID] = n
	}
	for _, a := range allocs {
		c.view.putAlloc(a, c.watches[a.JobID] != nil)
	}
	c.fresh, c.live = time.Now(), true
	for jobID := range c.watches {
		c.wake(jobID)
	}
	select {
	case <-c.synced:
	default:
		close(c.synced)
	}
	return min(nodesAt, allocsAt), nil
}

func (c *Cluster) apply(batch *eventBatch, listed uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh = time.Now()
	if batch.Index <= listed {
		return nil
	}
	for _, e := range batch.Events {
		if e.Topic == api.TopicEvaluation && !slices.ContainsFunc(e.FilterKeys, func(key string) bool { return c.watches[key] != nil }) {
			continue // most evaluations: those of all jobs of a node whose volumes changed
		}
		if e.Topic == api.TopicJob {
			continue // missed handles it
		}
		var p struct {
			Node       *api.NodeListStub
			Allocation *api.AllocationListStub
			Evaluation *api.Evaluation
		}
		if err := json.Unmarshal(e.Payload, &p); err != nil {
			return fmt.Errorf("event %s/%s: %w", e.Topic, e.Type, err)
		}
		switch {
		case p.Node != nil && e.Type == "NodeDeregistration":
			delete(c.view.nodes, p.Node.ID)
		case p.Node != nil:
			c.view.nodes[p.Node.ID] = c.nodeFrom(p.Node)
		case p.Allocation != nil:
			a := allocFrom(p.Allocation)
			c.view.putAlloc(a, c.watches[a.JobID] != nil)
			c.wake(a.JobID)
		case p.Evaluation != nil:
			c.putEval(p.Evaluation)
			c.wake(p.Evaluation.JobID)
		}
	}
	return nil
}
