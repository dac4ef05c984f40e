// Package cluster is the service's way to Nomad: what it does there (jobs, host
// volumes, variables) and an in-memory view of nodes and allocations, fed by
// one event stream.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

// callTimeout bounds one call to Nomad.
const callTimeout = 10 * time.Second

// Cluster talks to one Nomad region and namespace.
type Cluster struct {
	client    *api.Client
	namespace string
	log       hclog.Logger
	pageSize  int32         // tests make it small
	silence   time.Duration // streamSilence; tests make it short

	mu      sync.Mutex
	view    view
	watches map[string]map[*Watch]struct{} // by job
	synced  chan struct{}                  // closed when the view was filled first
	fresh   time.Time                      // when the feed last said something
	live    bool                           // the stream is open and the view complete
}

// New returns a cluster whose view is empty until Run has filled it.
func New(client *api.Client, namespace string, log hclog.Logger) *Cluster {
	return &Cluster{
		client: client, namespace: namespace, log: log, pageSize: pageSize,
		silence: streamSilence, view: newView(), watches: map[string]map[*Watch]struct{}{}, synced: make(chan struct{}),
	}
}

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
	node := nodeFrom(&api.NodeListStub{
		ID: n.ID, Name: n.Name, NodePool: n.NodePool, Status: n.Status, Drain: n.Drain, SchedulingEligibility: n.SchedulingEligibility,
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

// hashItem is the item of an engine's Nomad variable that holds the hash of its
// key; the job file's template reads it.
const hashItem = "key_hash"

func variablePath(jobID string) string { return "nomad/jobs/" + jobID }

// witnessItem is the item of the same variable that says whose the engine is.
const witnessItem = "engine"

// Witness is what the variable of an engine says of it, beside its row in the
// registry: what is needed to make the row anew.
type Witness struct {
	Deployment  string    `json:"deployment"` // the deployment's id
	EngineID    string    `json:"engine_id"`
	ProductID   string    `json:"product_id"`
	ProductSlug string    `json:"product_slug"`
	UserID      string    `json:"user_id"`
	Image       string    `json:"image"`
	Digest      string    `json:"digest,omitempty"`
	CPUMHz      int       `json:"cpu_mhz"`
	MemoryMB    int       `json:"memory_mb"`
	NodePool    string    `json:"node_pool,omitempty"`
	NodeID      string    `json:"node_id"`
	VolumeID    string    `json:"volume_id"`
	VolumeName  string    `json:"volume_name,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
}

// Variable is an engine's Nomad variable.
type Variable struct {
	KeyHash string
	// Witness is nil where a version of the service wrote the variable that put
	// none there, or another hand did.
	Witness *Witness
	// Index is what a change compares; 0: there is none yet.
	Index uint64
}

// PutVariable writes the variable of an engine over the one that was read at
// v.Index, and notes the new index in v. Its job's process sees only a change of
// the hash. ErrConflict: it is another one now.
func (c *Cluster) PutVariable(ctx context.Context, jobID string, v *Variable) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	put := api.NewVariable(variablePath(jobID))
	put.Namespace, put.ModifyIndex = c.namespace, v.Index
	put.Items = api.VariableItems{hashItem: v.KeyHash}
	if v.Witness != nil {
		text, err := json.Marshal(v.Witness)
		if err != nil {
			return fmt.Errorf("cluster: a witness always marshals: %w", err)
		}
		put.Items[witnessItem] = string(text)
	}
	written, _, err := c.client.Variables().CheckedUpdate(put, c.write(ctx))
	if err != nil {
		return classify(err)
	}
	v.Index = written.ModifyIndex
	return nil
}

// Variable reads the variable of an engine. ErrNotFound: there is none.
func (c *Cluster) Variable(ctx context.Context, jobID string) (*Variable, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	held, _, err := c.client.Variables().Read(variablePath(jobID), c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	v := &Variable{KeyHash: held.Items[hashItem], Index: held.ModifyIndex}
	if w := new(Witness); json.Unmarshal([]byte(held.Items[witnessItem]), w) == nil && w.EngineID != "" {
		v.Witness = w
	}
	return v, nil
}

// DeleteVariable removes the variable of an engine, if it is there.
func (c *Cluster) DeleteVariable(ctx context.Context, jobID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.Variables().Delete(variablePath(jobID), c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
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
