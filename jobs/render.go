package jobs

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Engine is what distinguishes an engine's job from the jobs of others.
type Engine struct {
	JobID       string // also the name of the engine's service
	EngineID    string
	ProductID   string
	ProductName string // readable, for the Nomad UI
	UserID      string
	Image       string // docker: an image; raw_exec: a file name in the bin dir
	Digest      string // docker: the digest of the image; empty: not resolved
	CPUMHz      int
	MemoryMB    int
	NodeID      string
	NodePool    string // empty: the cluster's default
	Isolation   string // docker: of engine.Policy; empty: the job file's runtime, or the daemon's default
	VolumeName  string // empty: as the job
	VolumePath  string // on the node; passed to raw_exec engines in their environment
	Count       int    // 1 runs the engine, 0 stops it
	Warm        string // fingerprint of a warm engine's kind; empty: it is a user's
	TLS         bool   // Describe: its processes serve TLS. Render decides by the settings
	Mark        string // id of the operation that registers the job: see Mark
	Shown       string // the engine's state for Nomad's UI: see Note
	// DeploymentID is the id of the deployment that creates the engine. A copy of a
	// rendered job keeps it.
	DeploymentID string
}

// DeploymentMeta is the key of the job meta that contains the deployment's id.
const DeploymentMeta = "deployment_id"

// Render returns the job of one engine. Job meta changes only at a start, because a change
// replaces the allocation. User and product are in the ui block and in service meta, which can
// change in place.
func (t *Template) Render(e Engine) (*api.Job, error) {
	job := new(api.Job)
	if err := json.Unmarshal(t.job, job); err != nil {
		return nil, fmt.Errorf("copy the engine's job: %w", err)
	}
	job.ID, job.Name = &e.JobID, &e.JobID
	job.Namespace = &t.settings.Namespace
	if e.NodePool != "" {
		job.NodePool = &e.NodePool
	}
	if job.Meta == nil {
		job.Meta = map[string]string{}
	}
	job.Meta["deployment"], job.Meta["engine_id"], job.Meta[DeploymentMeta] = t.settings.Deployment, e.EngineID, e.DeploymentID
	if e.Warm == "" {
		t.settings.tell(job.Meta, e)
	}

	group := job.TaskGroups[0]
	group.Count = &e.Count
	group.Constraints = append(group.Constraints, api.NewConstraint(nodeConstraint, "=", e.NodeID))
	group.Volumes[volumeName].Source = cmp.Or(e.VolumeName, e.JobID)

	if t.settings.SitsOutDrains {
		// Nomad stops as many processes at once as are more than count - max_parallel
		// (handleTaskGroup in nomad/drainer/watch_jobs.go).
		group.Migrate = api.DefaultMigrateStrategy()
		none := 0
		group.Migrate.MaxParallel = &none
	}

	task := group.Tasks[0]
	if task.Resources == nil {
		task.Resources = &api.Resources{}
	}
	task.Resources.CPU, task.Resources.MemoryMB = &e.CPUMHz, &e.MemoryMB
	if task.Env == nil {
		task.Env = map[string]string{}
	}
	switch t.settings.Driver {
	case Docker:
		task.Config["image"] = reference(e.Image, e.Digest)
		isolate(group, task, e.Isolation)
	case RawExec:
		args := []string{"-c", lockScript, e.VolumePath, path.Join(t.settings.BinDir, e.Image)}
		task.Config["command"], task.Config["args"] = shell, append(args, argsOf(task)...)
		task.Env["SQLITE_DB_PATH"] = path.Join(e.VolumePath, "brain.sqlite")
	}

	engineServices(job)[0].Name = e.JobID
	Label(job, e)
	Note{Mark: e.Mark, Shown: e.Shown}.Write(job)
	if t.settings.ConsulUI != "" {
		job.UI.Links = append(job.UI.Links, &api.JobUILink{Label: "Health in Consul", URL: t.settings.ConsulUI + "/services/" + e.JobID})
	}
	if e.Digest != "" {
		setServiceMeta(job, imageKey, e.Image)
	}
	if t.settings.PKIPath != "" {
		setServiceMeta(job, schemeKey, "https")
	}
	return job, nil
}

// keyChecksum is the service meta that shows in Consul which key the process was started
// with (registry.KeyChecksum). Nomad takes it from the environment of the process, where a
// template of the job file puts it.
const (
	keyChecksum         = "key_checksum"
	keyChecksumVariable = "ENGINE_KEY_CHECKSUM"
)

// imageKey is the service meta with the image as the caller named it, if the task names the
// image by its digest.
const imageKey = "image"

func serviceMeta(job *api.Job, key string) string {
	for _, s := range engineServices(job) {
		if value := s.Meta[key]; value != "" {
			return value
		}
	}
	return ""
}

func setServiceMeta(job *api.Job, key, value string) {
	services := engineServices(job)
	if len(services) == 0 || value == "" {
		return
	}
	if services[0].Meta == nil {
		services[0].Meta = map[string]string{}
	}
	services[0].Meta[key] = value
}

// Describe returns what Render wrote into a job, as far as the job still contains it. The
// row of a lost registry is rebuilt from that. Missing fields are empty.
func Describe(job *api.Job) Engine {
	e := Engine{JobID: str(job.ID), EngineID: job.Meta["engine_id"], DeploymentID: job.Meta[DeploymentMeta], Mark: Mark(job), TLS: ServesTLS(job)}
	e.ProductID = serviceMeta(job, "product_id")
	if user, err := base64.RawURLEncoding.DecodeString(serviceMeta(job, "user_id_b64")); err == nil {
		e.UserID = string(user)
	}
	if pool := str(job.NodePool); pool != "default" {
		e.NodePool = pool
	}
	if len(job.TaskGroups) == 0 {
		return e
	}
	group := job.TaskGroups[0]
	if group.Count != nil {
		e.Count = *group.Count
	}
	for _, c := range group.Constraints {
		if c.LTarget == nodeConstraint {
			e.NodeID = c.RTarget
		}
		if c.LTarget == runtimesAttribute {
			e.Isolation = isolationOf(c.RTarget)
		}
	}
	if v := group.Volumes[volumeName]; v != nil && v.Source != e.JobID {
		e.VolumeName = v.Source
	}
	if len(group.Tasks) == 0 {
		return e
	}
	task := group.Tasks[0]
	switch Driver(task.Driver) {
	case RawExec:
		e.Image = path.Base(executable(task))
		e.VolumePath = path.Dir(task.Env["SQLITE_DB_PATH"])
	default:
		e.Image, _ = task.Config["image"].(string)
		if _, digest, found := strings.Cut(e.Image, "@"); found {
			e.Digest = digest
			e.Image = cmp.Or(serviceMeta(job, imageKey), e.Image)
		}
	}
	if r := task.Resources; r != nil {
		if r.CPU != nil {
			e.CPUMHz = *r.CPU
		}
		if r.MemoryMB != nil {
			e.MemoryMB = *r.MemoryMB
		}
	}
	return e
}

// nodeConstraint is the left side of the constraint that binds an engine to its node.
const nodeConstraint = "${node.unique.id}"

// engineServices returns the services of an engine's job, which are in its group or in its
// task.
func engineServices(job *api.Job) []*api.Service {
	if len(job.TaskGroups) == 0 {
		return nil
	}
	group := job.TaskGroups[0]
	if len(group.Services) > 0 || len(group.Tasks) == 0 {
		return group.Services
	}
	return group.Tasks[0].Services
}

// Runs reports whether a job requests a process.
func Runs(job *api.Job) bool {
	if job.Stop != nil && *job.Stop || len(job.TaskGroups) == 0 {
		return false
	}
	count := job.TaskGroups[0].Count
	return count != nil && *count > 0
}
