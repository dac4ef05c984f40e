package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strconv"

	"github.com/hashicorp/nomad/api"
)

// WorkerSettings are what all workers of snapshots of this service have in common.
type WorkerSettings struct {
	HCL       string // the job file, nomad-jobs/brain.nomad.hcl
	Driver    Driver // that of engines
	Namespace string
	// Program is the worker: docker: an image; raw_exec: the path of the executable.
	Program string
	// Deployment is as in Settings.
	Deployment string
}

// Worker is what distinguishes a worker's job from others.
type Worker struct {
	JobID    string
	EngineID string // whose brain it copies or restores
	NodeID   string
	NodePool string // empty: the cluster's default
	// VolumeName is the name of the volume in Nomad, and VolumePath its directory on the
	// node.
	VolumeName, VolumePath string
	// Mounts: a container mounts the directory, and claims no volume.
	Mounts       bool
	DeploymentID string
}

// Workers renders the jobs of workers.
type Workers struct {
	settings             WorkerSettings
	snapshots, restoring []byte // JSON of api.Job
}

const (
	// WorkerPrefix is the prefix of the names of all workers' jobs.
	WorkerPrefix = "orch-brain-"
	// WorkerTask is the name of their task, whose log has the report.
	WorkerTask = "brain"
	// CopyPort is the label of the port on which a worker waits for the request to copy.
	CopyPort = "copy"
	// WorkerAlloc stands in an order for the allocation's directory.
	WorkerAlloc = "@ALLOC@"
	// WorkerCopy stands in an order for the address of CopyPort.
	WorkerCopy = "@COPY@"
	// brainInContainer is where a container has the volume.
	brainInContainer = "/brain"
)

// ParseWorkers lets Nomad parse the workers' job file.
func ParseWorkers(ctx context.Context, nomad *api.Client, s WorkerSettings) (*Workers, error) {
	w := &Workers{settings: s}
	for restores, to := range map[bool]*[]byte{false: &w.snapshots, true: &w.restoring} {
		req := parseRequest{JobHCL: s.HCL, Variables: fmt.Sprintf("driver = %s\nrestores = %s\n", hclString(string(s.Driver)), strconv.FormatBool(restores))}
		job := new(api.Job)
		if _, err := nomad.Raw().Write("/v1/jobs/parse", req, job, (&api.WriteOptions{Namespace: s.Namespace}).WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("parse the job file of snapshots' workers: %w", err)
		}
		text, err := json.Marshal(job)
		if err != nil {
			return nil, fmt.Errorf("copy the worker's job: %w", err)
		}
		*to = text
	}
	return w, nil
}

// Brain returns the directory of a volume as its worker sees it.
func (w *Workers) Brain(volumePath string) string {
	if w.settings.Driver == Docker {
		return brainInContainer
	}
	return volumePath
}

// Render returns the job of a worker that reads a volume, or fills it.
func (w *Workers) Render(e Worker, restores bool) (*api.Job, error) {
	text := w.snapshots
	if restores {
		text = w.restoring
	}
	job := new(api.Job)
	if err := json.Unmarshal(text, job); err != nil {
		return nil, fmt.Errorf("copy the worker's job: %w", err)
	}
	job.ID, job.Name, job.Namespace = &e.JobID, &e.JobID, &w.settings.Namespace
	job.Datacenters = []string{"*"}
	if e.NodePool != "" {
		job.NodePool = &e.NodePool
	}
	job.Meta = map[string]string{"deployment": w.settings.Deployment, "engine_id": e.EngineID, DeploymentMeta: e.DeploymentID}
	group := job.TaskGroups[0]
	group.Constraints = append(group.Constraints, api.NewConstraint(nodeConstraint, "=", e.NodeID))
	if v := group.Volumes[volumeName]; v != nil { // with raw_exec it claims none
		v.Source = e.VolumeName
	}
	task := group.Tasks[0]
	switch w.settings.Driver {
	case Docker:
		task.Config["image"] = w.settings.Program
		if e.Mounts {
			group.Volumes, task.VolumeMounts = nil, nil
			task.Config["mount"] = []map[string]any{{"type": "bind", "source": e.VolumePath, "target": brainInContainer, "readonly": !restores}}
		}
		task.Env["ORCH_COPY_ADDR"] = ":8000"
	case RawExec:
		task.Config["command"] = path.Clean(w.settings.Program)
		task.Env["ORCH_COPY_ADDR"] = "${NOMAD_ADDR_" + CopyPort + "}"
	}
	return job, nil
}
