// Package jobs renders the Nomad job of an engine from the job file.
//
// Nomad parses the file, once. For each engine, the fields that differ are set on a copy of
// the result, so that no user input is ever parsed as HCL or interpolated.
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
	// Mock runs no process. It measures the cost of many engines. Only development builds
	// of Nomad have this driver.
	Mock Driver = "mock_driver"
)

// Settings are what all engines of this service have in common.
type Settings struct {
	HCL         string // the job file
	Driver      Driver
	KeyReload   string // "restart" or "signal"
	NomadLogs   bool   // Nomad collects engines' output; otherwise only their driver does
	BinDir      string // raw_exec: directory of the executables
	CatalogPath string
	// ProviderKeysPath is the path of the provider keys in Vault, as a template reads it;
	// empty: engines get none.
	ProviderKeysPath string
	// PKIPath is the path in Vault that issues a certificate for an engine; empty: engines
	// serve plain HTTP.
	PKIPath          string `json:",omitempty"`
	CheckIntervalS   int
	CheckTimeoutS    int
	CheckMaxFailures int
	// NeedsChecksum reports that the service learns only from Consul which key a process
	// was started with.
	NeedsChecksum bool `json:",omitempty"`
	Namespace     string
	// SitsOutDrains: an engine runs on while its node is drained, until the drain's deadline,
	// because the service moves it.
	SitsOutDrains bool `json:",omitempty"`
	// UserMeta is how job meta names the user: "hashed", "plain" or "none".
	UserMeta string `json:",omitempty"`
	// ConsulUI is the address of Consul's UI up to the datacenter, such as
	// https://consul.example/ui/dc1, which a job links to; empty: no link.
	ConsulUI string `json:",omitempty"`
	// Deployment names the service that owns the job, if several services share a cluster.
	Deployment string
}

// Template is a parsed job file from which engines' jobs are rendered.
type Template struct {
	settings Settings
	job      []byte // JSON of api.Job: the copy that each rendering starts from
	owner    Owner
	// restartDelay is the delay of the group's restart block.
	restartDelay time.Duration
	// diskMB is the disk space in MiB that an allocation reserves on its node.
	diskMB int
}

// Names that must match those in the job file.
const (
	volumeName = "brain"
	// PortLabel is the label of the port that engines serve on.
	PortLabel = "http"
)

// parseRequest is Nomad's JobsParseRequest. The official client's own call takes no
// context.
type parseRequest = api.JobsParseRequest

// Parse lets Nomad parse the job file, and checks the rules that the service relies on. A
// *RulesError lists all that it breaks; any other error is Nomad's.
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

// New returns a template of a job that Nomad parsed. *RulesError: see Parse.
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

// Fingerprint identifies what all jobs of this template have in common.
func (t *Template) Fingerprint() string {
	b, err := json.Marshal(t.settings)
	if err != nil {
		panic("jobs: cannot encode the settings: " + err.Error())
	}
	sum := sha256.Sum256(append(b, t.job...))
	return hex.EncodeToString(sum[:])
}

// variables returns the content of a variables file for the job file.
func variables(s Settings) string {
	var b strings.Builder
	set := func(name, value string) { fmt.Fprintf(&b, "%s = %s\n", name, value) }
	set("driver", hclString(string(s.Driver)))
	set("key_reload", hclString(s.KeyReload))
	set("nomad_logs", strconv.FormatBool(s.NomadLogs))
	set("catalog_path", hclString(s.CatalogPath))
	set("provider_keys", hclString(s.ProviderKeysPath))
	set("pki_path", hclString(s.PKIPath))
	set("check_interval_s", strconv.Itoa(s.CheckIntervalS))
	set("check_timeout_s", strconv.Itoa(s.CheckTimeoutS))
	set("check_max_failures", strconv.Itoa(s.CheckMaxFailures))
	return b.String()
}

// hclString quotes a setting as an HCL string literal, and escapes template sequences, so
// that they are not interpreted.
func hclString(s string) string {
	q := strconv.Quote(s)
	q = strings.ReplaceAll(q, "${", "$${")
	return strings.ReplaceAll(q, "%{", "%%{")
}

// defaultRestartDelay applies to a job without a delay (Nomad's documentation of the
// restart block).
const defaultRestartDelay = 15 * time.Second

// defaultDiskMB applies to a job without a size (Nomad's documentation of the
// ephemeral_disk block).
const defaultDiskMB = 300

// DiskMB returns the disk space in MiB that an engine's allocation reserves on its node,
// besides its volume.
func (t *Template) DiskMB() int { return t.diskMB }

// Owner is the system user that must own an engine's volume.
type Owner struct {
	// UID and GID are empty if engines run as the Nomad agent's own user.
	UID, GID string
}

// Params returns the parameters of Nomad's mkdir volume plugin that create a volume for
// this owner.
func (o Owner) Params() map[string]string {
	params := map[string]string{"mode": "0700"}
	if o.UID != "" {
		params["uid"], params["gid"] = o.UID, o.GID
	}
	return params
}

// String returns the owner in a form that distinguishes volumes of different owners.
func (o Owner) String() string {
	if o.UID == "" {
		return "agent"
	}
	return o.UID + ":" + o.GID
}

// ownerOf reads the volume's owner from the task's user. A container's user must be
// numeric, because the node does not know the names in the image.
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
			return Owner{}, fmt.Errorf("task user %q must be numeric, as in \"65532:65532\", because the brain's directory must belong to it", task.User)
		}
	}
	return Owner{UID: uid, GID: gid}, nil
}

// RestartDelay returns how long Nomad waits before it restarts a crashed process.
func (t *Template) RestartDelay() time.Duration { return t.restartDelay }

// Owner returns the system user that volumes must belong to.
func (t *Template) Owner() Owner { return t.owner }
