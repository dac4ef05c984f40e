package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/jobs"
)

// orderItem is the item of a worker's Nomad variable with its order. The job file's
// template reads it.
const orderItem = "order"

// maxReport limits what is read of a worker's log, in bytes.
const maxReport = 1 << 20

// WorkerState is the state of a worker of snapshots.
type WorkerState struct {
	// AllocID is empty while Nomad has not placed it; Blocked is why it cannot.
	AllocID, Blocked string
	// Addr is where it waits for the request to copy; empty: nowhere.
	Addr string
	// Running: its process runs. Ended: it does not, and is not started again. Failure is
	// why, if it could not be started; empty: its report says that.
	Running, Ended bool
	Failure        string
	// Pulling: its image is being pulled.
	Pulling bool
}

// StartWorker registers the job of a worker with its order, unless the job exists.
func (c *Cluster) StartWorker(ctx context.Context, job *api.Job, order string) error {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	put := api.NewVariable(variablePath(*job.ID))
	put.Namespace, put.Items = c.namespace, api.VariableItems{orderItem: order}
	if _, _, err := c.client.Variables().Update(put, c.write(limited)); err != nil {
		return classify(err)
	}
	_, _, err := c.client.Jobs().RegisterOpts(job, &api.RegisterOptions{EnforceIndex: true, EvalPriority: evalPriority}, c.write(limited))
	if err = classify(err); errors.Is(err, ErrConflict) {
		return nil // it exists
	}
	return err
}

// Worker reads the state of a worker from Nomad. ErrNotFound: there is no such job.
func (c *Cluster) Worker(ctx context.Context, jobID string) (*WorkerState, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, _, err := c.client.Jobs().Allocations(jobID, true, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	if len(list) == 0 {
		return c.unplaced(ctx, jobID)
	}
	newest := list[0]
	for _, a := range list {
		if a.CreateIndex > newest.CreateIndex {
			newest = a
		}
	}
	a := allocFrom(newest)
	s := &WorkerState{AllocID: a.ID, Running: a.Client == api.AllocClientStatusRunning, Ended: a.Terminal(), Pulling: a.Pulling != ""}
	if s.Ended {
		s.Failure = a.Failure
	}
	if !s.Running {
		return s, nil
	}
	// The list contains no resources, which include the address.
	full, _, err := c.client.Allocations().Info(a.ID, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	if r := full.AllocatedResources; r != nil {
		for _, p := range r.Shared.Ports {
			if p.Label == jobs.CopyPort {
				s.Addr = net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
			}
		}
	}
	return s, nil
}

// unplaced returns the state of a worker without an allocation.
func (c *Cluster) unplaced(ctx context.Context, jobID string) (*WorkerState, error) {
	// Nomad keeps the evaluations of a purged job.
	if _, _, err := c.client.Jobs().Info(jobID, c.read(ctx)); err != nil {
		return nil, classify(err)
	}
	evals, _, err := c.client.Jobs().Evaluations(jobID, c.read(ctx))
	if err != nil {
		return nil, classify(err)
	}
	s := new(WorkerState)
	newest := uint64(0)
	for _, e := range evals {
		if e.CreateIndex < newest || len(e.FailedTGAllocs) == 0 {
			continue
		}
		newest = e.CreateIndex
		s.Blocked = evalFrom(e).Failed.Reason
	}
	return s, nil
}

// WorkerLog reads what a worker has written to its output.
func (c *Cluster) WorkerLog(ctx context.Context, allocID string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := c.read(ctx)
	q.Params = map[string]string{"task": jobs.WorkerTask, "type": "stdout", "origin": "start", "plain": "true"}
	// Not by the client's own method, which first tries to connect to the node.
	body, err := c.client.Raw().Response("/v1/client/fs/logs/"+allocID, q)
	if err != nil {
		if strings.Contains(err.Error(), api.PermissionDeniedErrorContent) { // with status 500 (client_fs_endpoint.go)
			return nil, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrDenied, err)
		}
		return nil, classify(err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxReport))
	if err != nil {
		return nil, fmt.Errorf("%w: the log of a worker: %w", ErrUnavailable, err)
	}
	return text, nil
}

// StopWorker ends a worker, but keeps what Nomad knows about it.
func (c *Cluster) StopWorker(ctx context.Context, jobID string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.client.Jobs().Deregister(jobID, false, c.write(ctx))
	if err = classify(err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ForgetWorker removes a worker, its job and its order. Stop it first: Nomad forgets its
// process at once.
func (c *Cluster) ForgetWorker(ctx context.Context, jobID string) error {
	if err := c.Purge(ctx, jobID); err != nil {
		return err
	}
	return c.DeleteVariable(ctx, jobID)
}

// Workers lists the names of the jobs of workers that begin with prefix, and of orders
// without a job.
func (c *Cluster) Workers(ctx context.Context, prefix string) ([]string, error) {
	q := c.read(ctx)
	q.Prefix = prefix
	var names []string
	_, err := c.pages(ctx, Unthrottled, q, func(q *api.QueryOptions) (*api.QueryMeta, error) {
		stubs, meta, err := c.client.Jobs().List(q)
		for _, s := range stubs {
			names = append(names, s.ID)
		}
		return meta, err
	})
	if err != nil {
		return nil, err
	}
	orders, err := c.KeyHashes(ctx, prefix, Unthrottled)
	if err != nil {
		return nil, err
	}
	for _, v := range orders {
		if !slices.Contains(names, v.JobID) {
			names = append(names, v.JobID)
		}
	}
	return names, nil
}
