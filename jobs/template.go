// Package jobs renders the Nomad job of an engine from the job file.
//
// Nomad itself parses the file, once; per engine the fields that differ are set
// on a copy of the result, so that nothing a user supplied is ever parsed as
// HCL or interpolated.
package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// Driver is the Nomad task driver that runs engines.
type Driver string

// The drivers that engines can run under.
const (
	Docker  Driver = "docker"
	RawExec Driver = "raw_exec"
	// Mock runs no process at all, to measure what many engines cost: Nomad's
	// releases do not have it, so nothing that matters can run under it.
	Mock Driver = "mock_driver"
)

// Settings are what all engines of this service have in common.
type Settings struct {
	HCL         string // the job file
	Driver      Driver
	KeyReload   string // "restart" or "signal"
	NomadLogs   bool   // Nomad collects engines' output, else their driver alone
	BinDir      string // raw_exec: where images are
	CatalogPath string
	// ProviderKeysPath is the path in Vault of the provider keys, as a template
	// reads it; empty: engines get none.
	ProviderKeysPath string
	CheckIntervalS   int
	CheckTimeoutS    int
	CheckMaxFailures int
	Namespace        string
	// Deployment says whose job it is, where several services share a cluster.
	Deployment string
}

// Template is a parsed job file from which engines' jobs are rendered.
type Template struct {
	settings Settings
	job      []byte // JSON of api.Job: the copy that each rendering starts from
	owner    Owner
	// restartDelay is that of the group's restart block.
	restartDelay time.Duration
	// diskMB is what an allocation reserves of its node's disk.
	diskMB int
}

// Names that the job file and the service agree on.
const (
	volumeName = "brain"
	// PortLabel is the label of the port that engines serve on.
	PortLabel = "http"
)

// parseRequest is Nomad's JobsParseRequest; the official client's own call
// takes no context.
type parseRequest = api.JobsParseRequest

// Parse has Nomad parse the job file and checks what the service relies on. A
// *RulesError lists everything that is missing; any other error came from
// Nomad.
func Parse(ctx context.Context, nomad *api.Client, s Settings) (*Template, error) {
	req := parseRequest{JobHCL: s.HCL, Variables: variables(s)}
	job := new(api.Job)
	if _, err := nomad.Raw().Write("/v1/jobs/parse", req, job, (&api.WriteOptions{Namespace: s.Namespace}).WithContext(ctx)); err != nil {
		var bad api.UnexpectedResponseError
		if errors.As(err, &bad) && bad.StatusCode() == 400 {
			return nil, &RulesError{Problems: []string{"Nomad cannot parse it: " + bad.Body()}}
		}
		return nil, fmt.Errorf("parse the engine's job file: %w", err)
	}
	return New(job, s)
}

// New makes a template of a job that Nomad parsed. *RulesError: see Parse.
func New(job *api.Job, s Settings) (*Template, error) {
	if problems := check(job, s); len(problems) > 0 {
		return nil, &RulesError{Problems: problems}
	}
	owner, err := ownerOf(job.TaskGroups[0].Tasks[0])
	if err != nil {
		return nil, &RulesError{Problems: []string{err.Error()}}
	}
	b, err := json.Marshal(job)
	if err != nil {
		return nil, fmt.Errorf("copy the engine's job: %w", err)
	}
	t := &Template{settings: s, job: b, owner: owner, restartDelay: defaultRestartDelay, diskMB: defaultDiskMB}
	if d := job.TaskGroups[0].EphemeralDisk; d != nil && d.SizeMB != nil {
		t.diskMB = *d.SizeMB
	}
	if r := job.TaskGroups[0].RestartPolicy; r != nil && r.Delay != nil {
		t.restartDelay = *r.Delay
	}
	return t, nil
}

// Fingerprint names what all jobs of this template have in common.
func (t *Template) Fingerprint() string {
	b, err := json.Marshal(t.settings)
	if err != nil {
		panic("jobs: settings always marshal: " + err.Error())
	}
	sum := sha256.Sum256(append(b, t.job...))
	return hex.EncodeToString(sum[:])
}

// variables is the content of a variables file for the job file.
func variables(s Settings) string {
	var b strings.Builder
	set := func(name, value string) { fmt.Fprintf(&b, "%s = %s\n", name, value) }
	set("driver", hclString(string(s.Driver)))
	set("key_reload", hclString(s.KeyReload))
	set("nomad_logs", strconv.FormatBool(s.NomadLogs))
	set("catalog_path", hclString(s.CatalogPath))
	set("provider_keys", hclString(s.ProviderKeysPath))
	set("check_interval_s", strconv.Itoa(s.CheckIntervalS))
	set("check_timeout_s", strconv.Itoa(s.CheckTimeoutS))
	set("check_max_failures", strconv.Itoa(s.CheckMaxFailures))
	return b.String()
}

// hclString quotes a setting as an HCL string literal; template sequences are
// escaped, so that it means just itself.
func hclString(s string) string {
	q := strconv.Quote(s)
	q = strings.ReplaceAll(q, "${", "$${")
	return strings.ReplaceAll(q, "%{", "%%{")
}

// defaultRestartDelay is that of a job that says none (Nomad's documentation of the
// restart block).
const defaultRestartDelay = 15 * time.Second

// defaultDiskMB is that of a job that says none (Nomad's documentation of the
// ephemeral_disk block).
const defaultDiskMB = 300

// DiskMB is what an engine's allocation reserves of its node's disk, without its volume.
func (t *Template) DiskMB() int { return t.diskMB }

// Owner is the user that an engine's volume must belong to.
type Owner struct {
	// UID and GID are empty where engines run as the agent's own user.
	UID, GID string
}

// Params are the parameters of Nomad's mkdir volume plugin that make a volume
// for this owner.
func (o Owner) Params() map[string]string {
	params := map[string]string{"mode": "0700"}
	if o.UID != "" {
		params["uid"], params["gid"] = o.UID, o.GID
	}
	return params
}

// String names the owner, to tell volumes made for one from those for another.
func (o Owner) String() string {
	if o.UID == "" {
		return "agent"
	}
	return o.UID + ":" + o.GID
}

// ownerOf reads the volume's owner off the task's user. A container's user
// must be numeric: the node does not know the image's names.
func ownerOf(task *api.Task) (Owner, error) {
	if task.User == "" || Driver(task.Driver) != Docker {
		return Owner{}, nil
	}
	uid, gid, found := strings.Cut(task.User, ":")
	if !found {
		gid = uid
	}
	for _, id := range []string{uid, gid} {
		if _, err := strconv.ParseUint(id, 10, 32); err != nil {
			return Owner{}, fmt.Errorf("task user %q must be numeric, as in \"65532:65532\", so that the brain can be given to it", task.User)
		}
	}
	return Owner{UID: uid, GID: gid}, nil
}

// RestartDelay is how long Nomad waits before it runs a crashed process again.
func (t *Template) RestartDelay() time.Duration { return t.restartDelay }

// Owner is the user that volumes must be made for.
func (t *Template) Owner() Owner { return t.owner }
