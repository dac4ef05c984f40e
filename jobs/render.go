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
	// DeploymentID is the id of the deployment that creates the engine. A copy of a
	// rendered job keeps it.
	DeploymentID string
}

// DeploymentMeta is the key of the job meta that contains the deployment's id.
const DeploymentMeta = "deployment_id"

// Render returns the job of one engine. Job meta never changes, because a change replaces
// the allocation. User and product are in the ui block and in service meta, which can
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
		isolate(group, task, e.Isolation)
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
	if t.settings.PKIPath != "" {
		setServiceMeta(job, schemeKey, "https")
	}
	return job, nil
}

// Label writes the engine's owner into a job, in two places that can change without a
// restart of its process.
func Label(job *api.Job, e Engine) {
	job.UI = &api.JobUIConfig{Description: fmt.Sprintf("Engine of user %s of product %s", quoteForUI(e.UserID), quoteForUI(e.ProductName))}
	if e.Warm != "" {
		job.UI.Description = fmt.Sprintf("Warm, unclaimed engine of image %s, kind %s: it runs and waits for a user", quoteForUI(e.Image), quoteForUI(e.Warm))
	}
	mark, image, scheme := Mark(job), serviceMeta(job, imageKey), serviceMeta(job, schemeKey)
	engineServices(job)[0].Meta = map[string]string{
		"engine_id":  e.EngineID,
		"product_id": e.ProductID,
		// Nomad interpolates service meta; the encoding prevents that for a user_id.
		"user_id_b64": base64.RawURLEncoding.EncodeToString([]byte(e.UserID)),
		keyChecksum:   "${" + keyChecksumVariable + "}",
	}
	SetMark(job, mark)
	setServiceMeta(job, imageKey, image)
	setServiceMeta(job, schemeKey, scheme)
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

// markKey is the service meta with the id of the operation that wrote the job last. It
// changes in place, and every change of it increases the job's index.
const markKey = "operation"

// Mark returns the id of the operation that wrote a job last; empty: no operation did.
func Mark(job *api.Job) string { return serviceMeta(job, markKey) }

// SetMark records which operation writes the job.
func SetMark(job *api.Job, mark string) { setServiceMeta(job, markKey, mark) }

// restKey is the service meta that says why a job requests no process.
const restKey = "rest"

// Rest returns the state of an engine whose job requests no process ("stopped",
// "sleeping"); empty: not recorded.
func Rest(job *api.Job) string { return serviceMeta(job, restKey) }

// SetRest records the engine's state while its job requests no process. A rendered job
// requests one and records no state.
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

// maxShown limits the length of a string in Nomad's UI, in bytes. Two of them and the words
// around stay below Nomad's limit of 1000 bytes (structs.Job.Validate).
const maxShown = 470

// quoteForUI quotes a string so that Nomad's UI, which renders Markdown, shows it
// literally. The result is ASCII; every character with a meaning in Markdown or HTML
// becomes a Go escape. A long string is shortened and marked as such.
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
