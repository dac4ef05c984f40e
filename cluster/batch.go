package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Batch is a shell script that runs once on a node, as a raw_exec task of the node's Nomad
// agent. Nomad interpolates ${...} in script and environment.
type Batch struct {
	Name, NodeID, NodePool string
	Script                 string
	Env                    map[string]string
	// Volume is a host volume that the script mounts as its only writer; empty: none.
	Volume string
}

// ErrBatchFailed means that the script ended with an exit code other than 0, or could not run.
var ErrBatchFailed = errors.New("cluster: the batch job failed")

// batchPoll is the interval at which a batch job is polled.
const batchPoll = 250 * time.Millisecond

// RunBatch runs a script and waits for its end. If a job of this name has already
// succeeded, the script does not run again; Purge removes such a job. RunBatch returns
// ErrBatchFailed, or the context's error if the script has not ended in time.
func (c *Cluster) RunBatch(ctx context.Context, b Batch) error {
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	_, _, err := c.client.Jobs().RegisterOpts(b.job(c.namespace), &api.RegisterOptions{EvalPriority: evalPriority}, c.write(limited))
	cancel()
	if err != nil {
		return classify(err)
	}
	var last error
	for {
		done, err := c.batchDone(ctx, b.Name)
		if done || errors.Is(err, ErrBatchFailed) {
			return err
		}
		last = err
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-time.After(batchPoll):
		}
	}
}

func (c *Cluster) batchDone(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	allocs, _, err := c.client.Jobs().Allocations(name, true, c.read(ctx))
	if err != nil {
		return false, classify(err)
	}
	failed := error(nil)
	for _, a := range allocs {
		switch a.ClientStatus {
		case api.AllocClientStatusComplete:
			return true, nil
		case api.AllocClientStatusFailed, api.AllocClientStatusLost:
			failed = fmt.Errorf("%w: %s", ErrBatchFailed, allocFrom(a).Failure)
		}
	}
	return false, failed
}

func (b *Batch) job(namespace string) *api.Job {
	job := api.NewBatchJob(b.Name, b.Name, "", 50)
	job.Region, job.Namespace, job.Datacenters = nil, &namespace, []string{"*"}
	if b.NodePool != "" {
		job.NodePool = &b.NodePool
	}
	job.Constrain(api.NewConstraint("${node.unique.id}", "=", b.NodeID))
	group := api.NewTaskGroup("batch", 1)
	none, never, mode := 0, false, "fail"
	group.RestartPolicy = &api.RestartPolicy{Attempts: &none, Mode: &mode}
	group.ReschedulePolicy = &api.ReschedulePolicy{Attempts: &none, Unlimited: &never}
	disk, one, noLogs := 10, 1, true
	group.EphemeralDisk = &api.EphemeralDisk{SizeMB: &disk}
	if b.Volume != "" {
		group.Volumes = map[string]*api.VolumeRequest{"volume": {
			Name: "volume", Type: api.CSIVolumeTypeHost, Source: b.Volume,
			AccessMode: string(api.HostVolumeAccessModeSingleNodeSingleWriter), AttachmentMode: string(api.HostVolumeAttachmentModeFilesystem),
		}}
	}
	task := api.NewTask("batch", "raw_exec").SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", b.Script})
	cpu, memory := 10, 32
	task.Env, task.Resources = b.Env, &api.Resources{CPU: &cpu, MemoryMB: &memory}
	task.LogConfig = &api.LogConfig{MaxFiles: &one, MaxFileSizeMB: &one, Disabled: &noLogs}
	return job.AddTaskGroup(group.AddTask(task))
}
