package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

// floor runs engines by hand with Nomad's API: the same job, and nothing of the
// service. It is what the service is measured against.
type floor struct {
	nomad     *api.Client
	cluster   *cluster.Cluster
	template  *jobs.Template
	nodeID    string
	image     string
	resources registry.Resources
	ready     []*handJob // volume and variable made, not registered yet
	// started waits until an allocation's process was started, where probing
	// before that does harm; nil where it does none.
	started func(ctx context.Context, allocID string) error
}

// handJob is one engine's job and its latest allocation.
type handJob struct {
	job      *api.Job
	volumeID string
	allocID  string
	addr     string
}

// newFloor prepares n engines for the configuration that a service has: their
// volumes are usable and their variables are written.
func newFloor(ctx context.Context, nomadAddr string, vars map[string]string, n int) (*floor, error) {
	cfg, err := config.Load(environ(vars))
	if err != nil {
		return nil, err
	}
	opts := cfg.Scheduler()
	opts.Job.Deployment = "bench-by-hand"
	f := &floor{image: opts.DefaultImage, resources: opts.Resources}
	if f.nomad, err = api.NewClient(&api.Config{Address: nomadAddr}); err != nil {
		return nil, err
	}
	f.cluster = cluster.New(f.nomad, cfg.NomadNamespace, cfg.VolumePlugin, hclog.NewNullLogger())
	if f.template, err = jobs.Parse(ctx, f.nomad, opts.Job); err != nil {
		return nil, err
	}
	nodes, _, err := f.nomad.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil || len(nodes) == 0 {
		return nil, errors.Join(err, errors.New("the stack has no node"))
	}
	f.nodeID = nodes[0].ID
	for range n {
		h, err := f.prepare(ctx)
		if err != nil {
			return nil, err
		}
		f.ready = append(f.ready, h)
	}
	for _, h := range f.ready {
		if err := f.finish(ctx, h); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// prepare begins to make the volume, which takes seconds, and writes the
// variable.
func (f *floor) prepare(ctx context.Context) (*handJob, error) {
	id := "by-hand-" + strings.ToLower(rand.Text())
	v, err := f.cluster.EnsureVolume(ctx, id, f.nodeID, f.template.Owner().Params())
	if err != nil {
		return nil, err
	}
	if err := f.cluster.PutVariable(ctx, id, &cluster.Variable{KeyHash: secrets.Hash(secrets.NewEngineKey())}); err != nil {
		return nil, err
	}
	return &handJob{job: &api.Job{ID: &id}, volumeID: v.ID}, nil
}

// finish waits for the volume and renders the job.
func (f *floor) finish(ctx context.Context, h *handJob) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := f.cluster.AwaitVolume(ctx, h.volumeID)
	if err != nil {
		return err
	}
	h.job, err = f.template.Render(jobs.Engine{
		JobID: *h.job.ID, EngineID: *h.job.ID, ProductID: "bench", ProductName: "bench", UserID: "bench", Image: f.image,
		CPUMHz: f.resources.CPUMHz, MemoryMB: f.resources.MemoryMB, NodeID: f.nodeID, VolumePath: v.Path, Count: 1,
	})
	return err
}

// next is an engine that was prepared and not used yet.
func (f *floor) next() *handJob {
	h := f.ready[0]
	f.ready = f.ready[1:]
	return h
}

// run registers the job with a count of 1 and returns when the engine answers.
// Its steps are register, allocation (until its address is known), where it can
// be told also start (until the container runs), and health. Boot is all
// but the first, as the service counts it.
func (f *floor) run(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	index, err := f.scale(ctx, h, 1)
	if err != nil {
		return timing{}, err
	}
	registered := time.Now()
	addr, err := f.address(ctx, h, index)
	if err != nil {
		return timing{}, err
	}
	h.addr = addr
	known := time.Now()
	started := known
	steps := map[string]float64{"register": millis(registered.Sub(began)), "allocation": millis(known.Sub(registered))}
	if f.started != nil {
		if err := f.started(ctx, h.allocID); err != nil {
			return timing{}, err
		}
		started = time.Now()
		steps["start"] = millis(started.Sub(known))
	}
	if err := awaitHealthy(ctx, addr); err != nil {
		return timing{}, err
	}
	healthy := time.Now()
	steps["health"] = millis(healthy.Sub(started))
	return timing{total: millis(healthy.Sub(began)), steps: steps}, nil
}

// scale registers the job with this count and returns its index.
func (f *floor) scale(ctx context.Context, h *handJob, count int) (uint64, error) {
	h.job.TaskGroups[0].Count = &count
	resp, _, err := f.nomad.Jobs().Register(h.job, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return 0, err
	}
	return resp.JobModifyIndex, nil
}

// address waits, by blocking queries, for an allocation that is newer than
// index, and returns where its engine will listen.
func (f *floor) address(ctx context.Context, h *handJob, index uint64) (string, error) {
	q := (&api.QueryOptions{}).WithContext(ctx)
	for {
		allocs, meta, err := f.nomad.Jobs().Allocations(*h.job.ID, false, q)
		if err != nil {
			return "", err
		}
		for _, stub := range allocs {
			if stub.CreateIndex < index {
				continue
			}
			alloc, _, err := f.nomad.Allocations().Info(stub.ID, (&api.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return "", err
			}
			h.allocID = alloc.ID
			for _, port := range alloc.AllocatedResources.Shared.Ports {
				if port.Label == jobs.PortLabel {
					return net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value)), nil
				}
			}
			return "", fmt.Errorf("allocation %s has no port %q", alloc.ID, jobs.PortLabel)
		}
		q.WaitIndex = meta.LastIndex
	}
}

// stop sets the count to 0 and returns when the node says that the process is
// gone.
func (f *floor) stop(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	if _, err := f.scale(ctx, h, 0); err != nil {
		return timing{}, err
	}
	registered := time.Now()
	if err := f.gone(ctx, h); err != nil {
		return timing{}, err
	}
	gone := time.Now()
	return timing{total: millis(gone.Sub(began)), steps: map[string]float64{
		"register": millis(registered.Sub(began)), "drain": millis(gone.Sub(registered)),
	}}, nil
}

// gone waits, by blocking queries, until the node says that the process is gone.
func (f *floor) gone(ctx context.Context, h *handJob) error {
	q := (&api.QueryOptions{}).WithContext(ctx)
	for {
		alloc, meta, err := f.nomad.Allocations().Info(h.allocID, q)
		if err != nil {
			return err
		}
		if alloc.ClientTerminalStatus() {
			return nil
		}
		q.WaitIndex = meta.LastIndex
	}
}

// rotate writes another key's hash and returns when the engine, which Nomad
// restarts for that, accepts the key.
func (f *floor) rotate(ctx context.Context, h *handJob) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	key := secrets.NewEngineKey()
	held, err := f.cluster.Variable(ctx, *h.job.ID)
	if err != nil {
		return timing{}, err
	}
	began := time.Now()
	if err := f.cluster.PutVariable(ctx, *h.job.ID, &cluster.Variable{KeyHash: secrets.Hash(key), Index: held.Index}); err != nil {
		return timing{}, err
	}
	written := time.Now()
	if err := awaitStatus(ctx, "http://"+h.addr+"/no-such-path", key, http.StatusNotFound); err != nil {
		return timing{}, err
	}
	accepted := time.Now()
	return timing{total: millis(accepted.Sub(began)), steps: map[string]float64{
		"variable": millis(written.Sub(began)), "proof": millis(accepted.Sub(written)),
	}}, nil
}

// settled waits until the node has told the servers of every engine that runs,
// by hand or not. An allocation that ends before its first report, up to a second
// after its start, is reported with the lesser priority and up to a second late
// (Nomad's client/client.go nextBatch and alloc_runner.go GetUpdatePriority): a
// stop of an engine that has run for a while is another case, and the one that is
// measured.
func (f *floor) settled(ctx context.Context) error {
	return until(ctx, func() error {
		allocs, _, err := f.nomad.Allocations().List((&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, a := range allocs {
			if a.DesiredStatus == api.AllocDesiredStatusRun && a.ClientStatus == api.AllocClientStatusPending {
				return fmt.Errorf("allocation %s is not reported yet", a.ID)
			}
		}
		return nil
	})
}

// destroy ends the engine and removes its job, volume and variable.
func (f *floor) destroy(ctx context.Context, h *handJob) (timing, error) {
	began := time.Now()
	if _, err := f.stop(ctx, h); err != nil { // Nomad forgets the allocations of a purged job at once
		return timing{}, err
	}
	if err := f.cluster.Purge(ctx, *h.job.ID); err != nil {
		return timing{}, err
	}
	if err := until(ctx, func() error { return f.cluster.DeleteVolume(ctx, h.volumeID) }); err != nil {
		return timing{}, err
	}
	if err := f.cluster.DeleteVariable(ctx, *h.job.ID); err != nil {
		return timing{}, err
	}
	return timing{total: millis(time.Since(began))}, nil
}

// handProber asks an engine's /health by hand: every 2 ms, and a port that takes
// no connection within 50 ms is asked anew, since the kernel's own retry costs a
// second.
var handProber = &http.Client{
	Timeout: 100 * time.Millisecond,
	Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 50 * time.Millisecond}).DialContext, DisableKeepAlives: true,
	},
}

const handProbeEvery = 2 * time.Millisecond

// awaitHealthy asks until the answer is 200.
func awaitHealthy(ctx context.Context, addr string) error {
	return awaitStatus(ctx, "http://"+addr+"/health", "", http.StatusOK)
}

// awaitStatus asks until the answer has this status.
func awaitStatus(ctx context.Context, url, key string, status int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("X-Engine-Key", key)
	}
	for {
		if resp, err := handProber.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == status {
				return nil
			}
		}
		if err := wait(ctx, handProbeEvery); err != nil {
			return fmt.Errorf("an engine run by hand did not answer %d: %w", status, err)
		}
	}
}
