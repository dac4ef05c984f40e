//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/internal/config"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/secrets"
)

// floor runs engines without the service, for the comparison: with Nomad's API ("by hand"),
// which gets the same job, and with a script.
type floor struct {
	*rig
	api     *api.Client
	cluster *cluster.Cluster
	ready   chan *handJob // have a volume and a variable, and are not registered yet
}

// handJob is one engine's job and its latest allocation.
type handJob struct {
	id, volumeID, allocID, addr string
	job                         *api.Job
}

// newFloor prepares volumes and variables of n engines with the configuration of a service.
func (r *rig) newFloor(ctx context.Context, s *service, n int) *floor {
	cfg := must(config.Load(s.vars))
	opts := cfg.Scheduler()
	opts.Job.Deployment = "bench-by-hand"
	f := &floor{rig: r, ready: make(chan *handJob, n), api: must(api.NewClient(&api.Config{Address: r.stack.NomadAddr}))}
	f.cluster = cluster.New(f.api, cfg.NomadNamespace, cfg.VolumePlugin, hclog.NewNullLogger())
	template := must(jobs.Parse(ctx, f.api, opts.Job))
	nodes, _, err := f.api.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	check(err)
	each(ctx, usersOf("by-hand-"+strings.ToLower(rand.Text()), n), n, func(ctx context.Context, id string) {
		v := must(f.cluster.EnsureVolume(ctx, id, nodes[0].ID, template.Owner().Params()))
		v = must(f.cluster.AwaitVolume(ctx, v.ID)) // takes seconds
		check(f.cluster.PutVariable(ctx, id, &cluster.Variable{KeyHash: secrets.Hash(secrets.NewEngineKey())}))
		f.ready <- &handJob{id: id, volumeID: v.ID, job: must(template.Render(jobs.Engine{
			JobID: id, EngineID: id, ProductID: "bench", ProductName: "bench", UserID: "bench", Image: opts.DefaultImage,
			CPUMHz: cpuMHz, MemoryMB: memoryMB, NodeID: nodes[0].ID, VolumePath: v.Path, Count: 1,
		}))}
	})
	return f
}

// run registers the job and returns when the engine responds.
func (f *floor) run(ctx context.Context, w *stopwatch, h *handJob) {
	index := f.scale(ctx, h, 1)
	w.step("register")
	f.allocation(ctx, h, index)
	w.step("allocation")
	awaitStatus(ctx, h.addr+"/health", "", http.StatusOK)
	w.step("health")
}

// scale registers the job with this count and returns its index.
func (f *floor) scale(ctx context.Context, h *handJob, count int) uint64 {
	h.job.TaskGroups[0].Count = &count
	resp, _, err := f.api.Jobs().Register(h.job, (&api.WriteOptions{}).WithContext(ctx))
	check(err)
	return resp.JobModifyIndex
}

// allocation waits with blocking queries for an allocation that is newer than index, and
// stores its id and the address of its engine.
func (f *floor) allocation(ctx context.Context, h *handJob, index uint64) {
	for q := (&api.QueryOptions{}).WithContext(ctx); ; {
		allocs, meta, err := f.api.Jobs().Allocations(h.id, false, q)
		check(err)
		i := slices.IndexFunc(allocs, func(a *api.AllocationListStub) bool { return a.CreateIndex >= index })
		if i >= 0 {
			alloc, _, err := f.api.Allocations().Info(allocs[i].ID, (&api.QueryOptions{}).WithContext(ctx))
			check(err)
			port := alloc.AllocatedResources.Shared.Ports[0] // the job has one port
			h.allocID, h.addr = alloc.ID, "http://"+net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value))
			return
		}
		q.WaitIndex = meta.LastIndex
	}
}

// stop sets the count to 0 and returns when the node reports that the process has ended.
func (f *floor) stop(ctx context.Context, w *stopwatch, h *handJob) {
	f.scale(ctx, h, 0)
	w.step("register")
	for q := (&api.QueryOptions{}).WithContext(ctx); ; {
		alloc, meta, err := f.api.Allocations().Info(h.allocID, q)
		check(err)
		if alloc.ClientTerminalStatus() {
			w.step("drain")
			return
		}
		q.WaitIndex = meta.LastIndex
	}
}

// destroy ends the engine and removes its job, volume and variable.
func (f *floor) destroy(ctx context.Context, w *stopwatch, h *handJob) {
	f.stop(ctx, w, h) // Nomad forgets the allocations of a purged job immediately
	check(f.cluster.Purge(ctx, h.id))
	w.step("purge")
	until(ctx, 20*time.Millisecond, func() error { return f.cluster.DeleteVolume(ctx, h.volumeID) })
	w.step("volume")
	check(f.cluster.DeleteVariable(ctx, h.id))
	w.step("variable")
}

// rotate writes another key's hash, and returns when the restarted engine accepts it.
func (f *floor) rotate(ctx context.Context, w *stopwatch, h *handJob) {
	key, held := secrets.NewEngineKey(), must(f.cluster.Variable(ctx, h.id))
	*w = *startWatch()
	check(f.cluster.PutVariable(ctx, h.id, &cluster.Variable{KeyHash: secrets.Hash(key), Index: held.Index}))
	w.step("variable")
	awaitStatus(ctx, h.addr+"/no-such-path", key, http.StatusNotFound)
	w.step("proof")
}

// settled waits until the node has reported every running engine as running. Otherwise the
// end of an engine is reported up to a second later than after a usual stop, because the
// report has a lower priority (nextBatch in Nomad's client/client.go, GetUpdatePriority in
// its alloc_runner.go).
func (f *floor) settled(ctx context.Context) {
	until(ctx, 20*time.Millisecond, func() error {
		allocs, _, err := f.api.Allocations().List((&api.QueryOptions{}).WithContext(ctx))
		for _, a := range allocs {
			if a.DesiredStatus == api.AllocDesiredStatusRun && a.ClientStatus == api.AllocClientStatusPending {
				err = fmt.Errorf("allocation %s is not reported yet", a.ID)
			}
		}
		return err
	})
}

// byScript runs a command of script.sh on an engine, with the shortest check interval that
// Consul allows.
func (f *floor) byScript(what string) func(context.Context, *stopwatch, *handJob) {
	return func(ctx context.Context, w *stopwatch, h *handJob) {
		one, file := 1, filepath.Join(f.dir, h.id+".json")
		h.job.TaskGroups[0].Count = &one
		h.job.TaskGroups[0].Tasks[0].Services[0].Checks[0].Interval = time.Second
		check(os.WriteFile(file, must(json.Marshal(map[string]any{"Job": h.job})), 0o600))
		if what == "run" { // the check of the previous process must be removed
			f.script(ctx, "absent", h.id)
		}
		*w = *startWatch()
		f.script(ctx, what, h.id, file, h.volumeID)
		w.step("all")
	}
}

// container runs an engine with `docker run`, and removes it when it responds.
func (f *floor) container(ctx context.Context, w *stopwatch, h *handJob) {
	name, hash := h.id+"-docker", secrets.Hash(secrets.NewEngineKey())
	*w = *startWatch()
	// The command is not cancelled: after it is killed, docker may create the container when
	// the stack has already listed the containers to remove.
	f.script(context.WithoutCancel(ctx), "docker", name, f.dir, hash)
	w.step("all")
	command(ctx, "docker", "rm", "-f", name)
}

// handProber probes an engine. It gives up a connection attempt after 10 ms: a container's
// published port accepts no connection before its network is up, and the kernel's own retry
// (ARP, SYN) takes a second.
var handProber = &http.Client{
	Timeout:   100 * time.Millisecond,
	Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: 10 * time.Millisecond}).DialContext, DisableKeepAlives: true},
}

// awaitStatus probes an engine every 2 ms until the response has this status.
func awaitStatus(ctx context.Context, url, key string, status int) {
	req := must(http.NewRequestWithContext(ctx, http.MethodGet, url, nil))
	req.Header.Set("X-Engine-Key", key)
	until(ctx, 2*time.Millisecond, func() error {
		resp, err := handProber.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != status {
				err = fmt.Errorf("%s responds %s", url, resp.Status)
			}
		}
		return err
	})
}
