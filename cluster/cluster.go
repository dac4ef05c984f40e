// Package cluster is the adapter to Nomad: jobs, host volumes, variables, and an in-memory
// view of nodes and allocations that one event stream feeds.
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

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// Errors that callers distinguish.
var (
	// ErrNotFound: Nomad has no such object.
	ErrNotFound = errors.New("cluster: not found")
	// ErrConflict: another writer has changed the job or variable since it was read.
	ErrConflict = errors.New("cluster: changed by another writer")
	// ErrInUse: an allocation still uses the volume.
	ErrInUse = errors.New("cluster: in use")
	// ErrNoDirectory: the volume's directory does not exist on its node.
	ErrNoDirectory = errors.New("cluster: no such directory on the node")
	// ErrUnavailable: Nomad cannot be reached or has no leader. It is unknown whether a
	// change was made.
	ErrUnavailable = errors.New("cluster: nomad unavailable")
	// ErrDenied: Nomad refuses the service's token, or lets it not do this; always together
	// with ErrUnavailable.
	ErrDenied = errors.New("cluster: nomad refused the service's token")
	// ErrRejected: Nomad refused the request. A retry of the same request will fail too.
	ErrRejected = errors.New("cluster: nomad rejected the request")
)

// PluginError is the message of a node's volume plugin, or of Nomad about the plugin, when
// a volume could not be created, changed or deleted.
type PluginError struct{ Said string }

func (e *PluginError) Error() string { return "cluster: volume plugin: " + e.Said }

// pluginFailed matches the errors of Nomad's client about volume plugins
// (client/hostvolumemanager).
var pluginFailed = regexp.MustCompile(`(?s)with plugin "[^"]*": (?:original error: )?(?:exit status \d+: )?(.*)|(?:no such plugin|plugin not executable): ".*`)

// callTimeout limits the duration of one call to Nomad.
const callTimeout = 10 * time.Second

// Cluster is a client of one Nomad region and namespace.
type Cluster struct {
	client    *api.Client
	namespace string
	// volumePlugin is the name of the Nomad plugin that creates volumes.
	volumePlugin string
	log          hclog.Logger
	pageSize     int32         // items per page; tests reduce it
	silence      time.Duration // streamSilence; tests shorten it

	mu      sync.Mutex
	view    view
	watches map[string]map[*Watch]struct{} // by job
	synced  chan struct{}                  // closed when the view was filled for the first time
	fresh   time.Time                      // time of the last message from Nomad
	live    bool                           // whether the stream is open and the view complete
}

// Mkdir is the volume plugin that is built into Nomad. Every node has it; it sets no
// quotas.
const Mkdir = "mkdir"

// New returns a Cluster. Its view is empty until Run has filled it.
func New(client *api.Client, namespace, volumePlugin string, log hclog.Logger) *Cluster {
	return &Cluster{
		client: client, namespace: namespace, volumePlugin: volumePlugin, log: log, pageSize: pageSize,
		silence: streamSilence, view: newView(), watches: map[string]map[*Watch]struct{}{}, synced: make(chan struct{}),
	}
}

// SetsQuotas reports whether the volume plugin can limit the size of volumes.
func (c *Cluster) SetsQuotas() bool { return c.volumePlugin != Mkdir }

// Client returns the underlying Nomad client.
func (c *Cluster) Client() *api.Client { return c.client }

func (c *Cluster) read(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{Namespace: c.namespace}).WithContext(ctx)
}

func (c *Cluster) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{Namespace: c.namespace}).WithContext(ctx)
}

// Ping checks that Nomad has a leader, and that the service's token may list jobs in its
// namespace. ErrDenied: it may not.
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

// Job reads an engine's job. ErrNotFound: there is no such job.
func (c *Cluster) Job(ctx context.Context, id string) (*api.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	job, _, err := c.client.Jobs().Info(id, c.read(ctx))
	return job, classify(err)
}

// AllocStatuses returns the client status of each allocation of a job that Nomad knows,
// finished or not.
func (c *Cluster) AllocStatuses(ctx context.Context, jobID string) (statuses []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, _, err := c.client.Jobs().Allocations(jobID, true, c.read(ctx))
	for _, a := range list {
		statuses = append(statuses, a.ClientStatus)
	}
	return statuses, classify(err)
}

// ReadNode reads a node from Nomad itself, without its free resources. ErrNotFound: Nomad
// does not know the node.
func (c *Cluster) ReadNode(ctx context.Context, id string) (*Node, error) {
	n, err := c.nodeInfo(ctx, id)
	if err != nil {
		return nil, err
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

// nodeInfo reads a node from Nomad as it is. ErrNotFound: Nomad does not know the node.
func (c *Cluster) nodeInfo(ctx context.Context, id string) (*api.Node, error) {
	if _, err := uuid.Parse(id); err != nil {
		return nil, fmt.Errorf("%w: node %q: %w", ErrNotFound, id, err) // Nomad responds 500
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, _, err := c.client.Nodes().Info(id, c.read(ctx))
	return n, classify(err)
}

// consulName is the attribute with the name of the Consul agent that a node's Nomad agent
// uses (client/fingerprint/consul.go in Nomad). Nomad keeps it while that agent is down.
const consulName = "unique.consul.name"

// ConsulAgent reads from Nomad which Consul agent a node uses, by its name; "": none that the
// node has found. ErrNotFound: Nomad does not know the node.
func (c *Cluster) ConsulAgent(ctx context.Context, nodeID string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, _, err := c.client.Nodes().Info(nodeID, c.read(ctx))
	if err != nil {
		return "", classify(err)
	}
	return n.Attributes[consulName], nil
}

// Evaluate makes Nomad try again to place a job's processes.
func (c *Cluster) Evaluate(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.Jobs().ForceEvaluate(id, c.write(ctx))
	return classify(err)
}

// Purge stops a job and removes it from Nomad. It succeeds if there is no such job.
func (c *Cluster) Purge(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.Jobs().Deregister(id, true, c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ScaleToZero sets the count of a job to 0, so that its process is stopped, and writes a
// note into it. If nothing would change, it writes nothing. It returns the job's index.
//
// It calls before between reading and writing the job, and writes only if before returns
// nil. The write is a check-and-set at the index that was read, so it overwrites no change
// that was made after that.
//
// ErrNotFound: there is no such job. ErrConflict: another writer changed the job meanwhile.
func (c *Cluster) ScaleToZero(ctx context.Context, id string, note jobs.Note, before func() error) (uint64, error) {
	job, err := c.Job(ctx, id)
	if err != nil {
		return 0, err
	}
	changed := note.Write(job)
	for _, group := range job.TaskGroups {
		if group.Count == nil || *group.Count != 0 {
			zero := 0
			group.Count, changed = &zero, true
		}
	}
	if !changed {
		return *job.JobModifyIndex, nil
	}
	if err := before(); err != nil {
		return 0, err
	}
	return c.Register(ctx, job, *job.JobModifyIndex)
}

// noProcess is in Nomad's response with status 500 to a signal for a task whose process does
// not run (errTaskNotRunning in its task runner).
const noProcess = "Task not running"

// signalTimeout limits a signal, which Nomad's servers forward to a node that may be
// unreachable.
const signalTimeout = 3 * time.Second

// Signal sends a signal, such as "SIGCONT", to the process of an allocation. ErrRejected: it
// has none at the moment, because it has ended, or Nomad is starting it again. After other
// errors it is unknown whether the signal was sent, because the node did not confirm it.
func (c *Cluster) Signal(ctx context.Context, allocID, signal string) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	err := c.client.Allocations().Signal(&api.Allocation{ID: allocID}, c.read(ctx), "", signal)
	if err != nil && strings.Contains(err.Error(), noProcess) {
		return fmt.Errorf("%w: %w", ErrRejected, err)
	}
	return classify(err)
}

// classify wraps an error of the Nomad client in one of this package's errors.
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
	case bad.StatusCode() == http.StatusForbidden || bad.StatusCode() == http.StatusUnauthorized:
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrDenied, err)
	case bad.StatusCode() >= 500 || bad.StatusCode() == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", ErrRejected, err)
}
