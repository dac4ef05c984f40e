package jobs

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Engine is what distinguishes one engine's job from another's.
type Engine struct {
	JobID       string // also the name of its service
	EngineID    string
	ProductID   string
	ProductName string // readable, for the Nomad UI
	UserID      string
	Image       string // docker: an image; raw_exec: a file name in the bin dir
	Digest      string // docker: what the image is resolved to; empty: it is not
	CPUMHz      int
	MemoryMB    int
	NodeID      string
	NodePool    string // empty: the cluster's default
	VolumeName  string // empty: as the job
	VolumePath  string // on the node; raw_exec engines get it in their environment
	Count       int    // 1 runs the engine, 0 stops it
	Warm        string // fingerprint of a warm engine's kind; empty: it is a user's
	Mark        string // whose registration it is: see Mark
	// DeploymentID is the id of the deployment that makes the engine. The copy of a
	// rendered job has what it had.
	DeploymentID string
}

// DeploymentMeta is the job meta that names the deployment by its id.
const DeploymentMeta = "deployment_id"

// Render returns the job of one engine. Job meta is fixed at birth, as changing
// it replaces the allocation; user and product stand in the ui block and in
// service meta, which change in place.
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

	group := job.TaskGroups[0]
	group.Count = &e.Count
	group.Constraints = append(group.Constraints, api.NewConstraint(nodeConstraint, "=", e.NodeID))
	group.Volumes[volumeName].Source = cmp.Or(e.VolumeName, e.JobID)

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
	case RawExec:
		args := []string{"-c", lockScript, e.VolumePath, path.Join(t.settings.BinDir, e.Image)}
		task.Config["command"], task.Config["args"] = shell, append(args, argsOf(task)...)
		task.Env["SQLITE_DB_PATH"] = path.Join(e.VolumePath, "brain.sqlite")
	}

	engineServices(job)[0].Name = e.JobID
	Label(job, e)
	SetMark(job, e.Mark)
	if e.Digest != "" {
		setServiceMeta(job, imageKey, e.Image)
	}
	return job, nil
}

// Label says in a job whose engine it is; both places change without a restart
// of its process.
func Label(job *api.Job, e Engine) {
	job.UI = &api.JobUIConfig{Description: fmt.Sprintf("Engine of user %s of product %s", quoteForUI(e.UserID), quoteForUI(e.ProductName))}
	if e.Warm != "" {
		job.UI.Description = fmt.Sprintf("Warm, unclaimed engine of image %s, kind %s: it runs and waits for a user", quoteForUI(e.Image), quoteForUI(e.Warm))
	}
	mark, image := Mark(job), serviceMeta(job, imageKey)
	engineServices(job)[0].Meta = map[string]string{
		"engine_id":  e.EngineID,
		"product_id": e.ProductID,
		// Nomad interpolates service meta: encoded, a user_id means just itself.
		"user_id_b64": base64.RawURLEncoding.EncodeToString([]byte(e.UserID)),
	}
	SetMark(job, mark)
	setServiceMeta(job, imageKey, image)
}

// imageKey is the service meta that names the image as the caller did, where the
// task has it by its digest.
const imageKey = "image"

// markKey is the service meta that says which operation wrote the job last. It
// changes in place, and every change of it moves the job's index.
const markKey = "operation"

// Mark says which operation wrote a job last; empty: none did, or another hand.
func Mark(job *api.Job) string { return serviceMeta(job, markKey) }

// SetMark says that an operation writes the job.
func SetMark(job *api.Job, mark string) { setServiceMeta(job, markKey, mark) }

// restKey is the service meta that says why a job asks for no process.
const restKey = "rest"

// Rest says in what state an engine is whose job asks for no process ("stopped",
// "sleeping"); empty: that was not said.
func Rest(job *api.Job) string { return serviceMeta(job, restKey) }

// SetRest says in what state the engine is while its job asks for no process. A
// rendered job, which asks for one, says nothing.
func SetRest(job *api.Job, state string) { setServiceMeta(job, restKey, state) }

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

// Describe reads off a job what Render wrote into it, as far as the job says so:
// what the row of a lost registry can be made from. A field that is not there is
// empty.
func Describe(job *api.Job) Engine {
	e := Engine{JobID: str(job.ID), EngineID: job.Meta["engine_id"], DeploymentID: job.Meta[DeploymentMeta], Mark: Mark(job)}
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

// nodeConstraint is what the constraint compares that binds an engine to its node.
const nodeConstraint = "${node.unique.id}"

// engineServices are the services of an engine's job, which stand in its group
// or in its task.
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

// Runs says whether a job as Nomad has it is to run a process.
func Runs(job *api.Job) bool {
	if job.Stop != nil && *job.Stop || len(job.TaskGroups) == 0 {
		return false
	}
	count := job.TaskGroups[0].Count
	return count != nil && *count > 0
}

// maxShown bounds what the UI shows of one string: two of them and the words
// around stay below the 1000 bytes that Nomad allows (structs.Job.Validate).
const maxShown = 470

// quoteForUI shows a string in the Nomad UI, which renders Markdown, as
// itself: ASCII, quoted, every character that Markdown or HTML gives a meaning
// as a Go escape. A long one is cut, and marked so.
func quoteForUI(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		shown := strconv.QuoteToASCII(string(r))
		shown = shown[1 : len(shown)-1]
		if strings.ContainsRune("`<>[]()*_#!|~&$%{}", r) {
			shown = fmt.Sprintf(`\x%02x`, r)
		}
		if b.Len()+len(shown) > maxShown-len(cut) {
			return b.String() + cut
		}
		b.WriteString(shown)
	}
	return b.String() + `"`
}

const cut = `"...`
