// Package cluster is the service's way to Nomad: what it does there (jobs, host
// volumes, variables) and an in-memory view of nodes and allocations, fed by
// one event stream.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// Errors that callers branch on.
var (
	// ErrNotFound: Nomad has no such thing.
	ErrNotFound = errors.New("cluster: not found")
	// ErrConflict: somebody else changed the job or variable since it was read.
	ErrConflict = errors.New("cluster: changed by somebody else")
	// ErrInUse: a volume that an allocation still uses.
	ErrInUse = errors.New("cluster: in use")
	// ErrNoDirectory: the directory of a volume is not on its node.
	ErrNoDirectory = errors.New("cluster: no such directory on the node")
	// ErrUnavailable: Nomad cannot be reached or has no leader; whether a change
	// was made is not known.
	ErrUnavailable = errors.New("cluster: nomad unavailable")
	// ErrRejected: Nomad refused what was asked; the same again will be refused
	// again.
	ErrRejected = errors.New("cluster: nomad rejected it")
)

// PluginError is what a node's volume plugin, or Nomad of it, said when a volume was not
// made, changed or deleted.
type PluginError struct{ Said string }

func (e *PluginError) Error() string { return "cluster: volume plugin: " + e.Said }

// pluginFailed matches the errors of Nomad's client (client/hostvolumemanager).
var pluginFailed = regexp.MustCompile(`(?s)with plugin "[^"]*": (?:original error: )?(?:exit status \d+: )?(.*)|(?:no such plugin|plugin not executable): ".*`)

// callTimeout bounds one call to Nomad.
const callTimeout = 10 * time.Second

// Cluster talks to one Nomad region and namespace.
type Cluster struct {
	client    *api.Client
	namespace string
	// volumePlugin is the plugin of Nomad's that makes volumes.
	volumePlugin string
	log          hclog.Logger
	pageSize     int32         // tests make it small
	silence      time.Duration // streamSilence; tests make it short

	mu      sync.Mutex
	view    view
	watches map[string]map[*Watch]struct{} // by job
	synced  chan struct{}                  // closed when the view was filled first
	fresh   time.Time                      // when the feed last said something
	live    bool                           // the stream is open and the view complete
}

// Mkdir is the volume plugin that is built into Nomad: every node has it, and it sets no
// quotas.
const Mkdir = "mkdir"

// New returns a cluster whose view is empty until Run has filled it.
func New(client *api.Client, namespace, volumePlugin string, log hclog.Logger) *Cluster {
	return &Cluster{
		client: client, namespace: namespace, volumePlugin: volumePlugin, log: log, pageSize: pageSize,
		silence: streamSilence, view: newView(), watches: map[string]map[*Watch]struct{}{}, synced: make(chan struct{}),
	}
}

// SetsQuotas says whether volumes can be limited.
func (c *Cluster) SetsQuotas() bool { return c.volumePlugin != Mkdir }

// Client is the underlying Nomad client.
func (c *Cluster) Client() *api.Client { return c.client }

func (c *Cluster) read(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{Namespace: c.namespace}).WithContext(ctx)
}

func (c *Cluster) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{Namespace: c.namespace}).WithContext(ctx)
}

// Ping asks Nomad for a leader, and for the jobs of the service's namespace with the
// service's own token. ErrRejected: it may not list them.
func (c *Cluster) Ping(ctx context.Context) error {
	var leader string
	if _, err := c.client.Raw().Query("/v1/status/leader", &leader, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return classify(err)
	}
	if leader == "" {
		return fmt.Errorf("%w: no leader", ErrUnavailable)
	}
	one := c.read(ctx)
	one.PerPage = 1
	_, _, err := c.client.Jobs().List(one)
	return classify(err)
}

// Job reads an engine's job. ErrNotFound: there is none.
func (c *Cluster) Job(ctx context.Context, id string) (*api.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	job, _, err := c.client.Jobs().Info(id, c.read(ctx))
	return job, classify(err)
}

// ReadNode asks Nomad itself for a node, without what is free on it. ErrNotFound:
// it does not know the node.
func (c *Cluster) ReadNode(ctx context.Context, id string) (*Node, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, _, err := c.client.Nodes().Info(id, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	node := c.nodeFrom(&api.NodeListStub{
		Attributes: n.Attributes, ID: n.ID, Name: n.Name, NodePool: n.NodePool, Status: n.Status, Drain: n.Drain, SchedulingEligibility: n.SchedulingEligibility,
		ModifyIndex: n.ModifyIndex, Drivers: n.Drivers,
	})
	if n.Status == api.NodeStatusReady {
		node.InTouch = 1
		for _, e := range n.Events {
			if e.Subsystem == "Cluster" {
				node.InTouch = max(node.InTouch, e.CreateIndex)
			}
		}
	}
	return node, nil
}

// Evaluate has Nomad look anew for a place for a job's processes.
func (c *Cluster) Evaluate(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.Jobs().ForceEvaluate(id, c.write(ctx))
	return classify(err)
}

// Purge stops a job and forgets it. A job that is not there is purged.
func (c *Cluster) Purge(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.Jobs().Deregister(id, true, c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ScaleToZero sets the count of a job to 0, so that its process is stopped, and
// marks the job as mark's and at rest as rest; a job that is all of it already is
// left alone. before is
// called between the reading of the job and the writing of what was read: when
// it says that the caller may still act, nothing that is done to the job after
// that is undone. It returns the index of the job as it is then. ErrNotFound:
// there is no such job. ErrConflict: somebody changed the job meanwhile.
func (c *Cluster) ScaleToZero(ctx context.Context, id, mark, rest string, before func() error) (uint64, error) {
	job, err := c.Job(ctx, id)
	if err != nil {
		return 0, err
	}
	changed := mark != "" && jobs.Mark(job) != mark || rest != "" && jobs.Rest(job) != rest
	for _, group := range job.TaskGroups {
		if group.Count == nil || *group.Count != 0 {
			zero := 0
			group.Count, changed = &zero, true
		}
	}
	if !changed {
		return *job.JobModifyIndex, nil
	}
	if mark != "" {
		jobs.SetMark(job, mark)
	}
	if rest != "" {
		jobs.SetRest(job, rest)
	}
	if err := before(); err != nil {
		return 0, err
	}
	return c.Register(ctx, job, *job.JobModifyIndex)
}

// signalTimeout bounds a signal, which goes through the servers to a node that may
// be away.
const signalTimeout = 3 * time.Second

// Signal sends a signal ("SIGCONT") to the process of an allocation. An error says
// that its node did not confirm it: whether it was sent is not known.
func (c *Cluster) Signal(ctx context.Context, allocID, signal string) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	return classify(c.client.Allocations().Signal(&api.Allocation{ID: allocID}, c.read(ctx), "", signal))
}

// classify gives an error of the Nomad client its place among ours.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, api.ErrVariablePathNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	var moved api.ErrCASConflict
	if errors.As(err, &moved) {
		return fmt.Errorf("%w: the variable is at index %d, not at %d", ErrConflict, moved.Conflict.ModifyIndex, moved.CheckIndex)
	}
	var bad api.UnexpectedResponseError
	if !errors.As(err, &bad) || !bad.HasStatusCode() {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	body := bad.Body()
	if said := pluginFailed.FindStringSubmatch(body); said != nil {
		return fmt.Errorf("%w: %w", &PluginError{strings.TrimSpace(cmp.Or(said[1], said[0]))}, err)
	}
	switch {
	case strings.Contains(body, api.RegisterEnforceIndexErrPrefix):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case bad.StatusCode() == http.StatusNotFound || strings.Contains(body, "no such volume") || strings.Contains(body, "volume not found"):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case strings.Contains(body, "in use"):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	case bad.StatusCode() >= 500 || bad.StatusCode() == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", ErrRejected, err)
}
