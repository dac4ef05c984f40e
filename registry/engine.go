package registry

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// OpKind names an operation that moves an engine.
type OpKind string

// The operations that a row can carry.
const (
	OpProvision OpKind = "provision"
	OpStart     OpKind = "start"
	OpStop      OpKind = "stop"
	OpDestroy   OpKind = "destroy"
	OpRotateKey OpKind = "rotate_key"
	// OpSleep is a stop of an idle engine, which an admit wakes.
	OpSleep OpKind = "sleep"
	// OpRecover waits for the process that a failed engine has: Nomad restarted
	// it, or its node is back.
	OpRecover OpKind = "recover"
	// OpRestart ends a running engine's process and runs it anew.
	OpRestart OpKind = "restart"
)

// Op is the operation in progress of an engine. Its presence is what
// ENGINE_BUSY means; whoever finds it with an owner that is gone continues it
// from Step.
type Op struct {
	ID       string    `json:"id"`
	Kind     OpKind    `json:"kind"`
	Step     string    `json:"step"`
	Owner    string    `json:"owner"`
	BeganAt  time.Time `json:"began_at"`
	Deadline time.Time `json:"deadline"`

	// From is the state the operation started in: where an undone start
	// returns to.
	From State `json:"from,omitempty"`
	// Undo is the error code for which the operation is being undone; empty
	// while it goes forward. Reason is the row's reason that goes with it.
	Undo   string `json:"undo,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Message is what the caller hears with Undo.
	Message string `json:"message,omitempty"`
	// KeyVersion is the Vault version that a rotation writes, or that a warm engine
	// has while it is claimed; KeyID is the key's own name.
	KeyVersion int    `json:"key_version,omitempty"`
	KeyID      string `json:"key_id,omitempty"`
	// GiveUp: the engine is to be stopped or started, and a rotation that it has not
	// confirmed ends with its next process.
	GiveUp bool `json:"give_up,omitempty"`
	// EnvVersion is the version of the provider keys that a restart is for.
	EnvVersion int `json:"env_version,omitempty"`
	// JobIndex is the JobModifyIndex after this operation's registration:
	// only allocations created after it belong to the operation.
	JobIndex uint64 `json:"job_index,omitempty"`
	// Supersedes is the replica whose operation this destroy interrupted and
	// that has not yet said that it stopped working on the engine.
	Supersedes string `json:"supersedes,omitempty"`
	// Action is what the audit log calls the operation.
	Action string `json:"action,omitempty"`
	// Canary is a restart that finds out whether a storm of failures is over; its
	// own failure counts for nothing.
	Canary bool `json:"canary,omitempty"`
	// AuditID is the operation's row in the audit log, to be completed by
	// whoever finishes it.
	AuditID int64 `json:"audit_id,omitempty"`
	// RequestID is the request that caused the operation, for the logs of
	// whoever finishes it.
	RequestID string `json:"request_id,omitempty"`
}

// Ended is an operation that is over, for those who did not wait for it.
type Ended struct {
	ID      string    `json:"id"`
	Kind    OpKind    `json:"kind"`
	BeganAt time.Time `json:"began_at"`
	EndedAt time.Time `json:"ended_at"`
	// Code and Message are those of the error that its caller got; empty: it succeeded.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// Restarts is how a failed engine is restarted without being asked to. It is in
// the row, so that a change of leader does not begin anew.
type Restarts struct {
	Attempts int       `json:"attempts"`
	NextAt   time.Time `json:"next_at"`
	// GaveUp: only a manual start brings the engine back.
	GaveUp bool `json:"gave_up,omitempty"`
}

// Frozen is the process that a sleeping engine keeps (sleep_mode "pause"). The row
// has it from before the process may be stopped (SIGSTOP) until it is known to go
// on, or to be gone.
type Frozen struct {
	AllocID string `json:"alloc_id"`
	URL     string `json:"url"`
	// Started is when the process was started (cluster.Alloc.Started): a later one
	// is another process, which was never frozen.
	Started int64 `json:"started,omitempty"`
}

// Vanished is a process that the row knew of and whose allocation Nomad does not
// know any more: its job was purged, or Nomad lost its state. Such a process counts
// as one that may be alive until it is confirmed that it is gone.
type Vanished struct {
	AllocID string `json:"alloc_id"`
	NodeID  string `json:"node_id"`
	// Since is since when its node has been in touch with Nomad's servers without a
	// break, and at the earliest when this was seen first. InTouch is which time that
	// is; 0: it was not when it was looked at last, or was not looked at.
	Since   time.Time `json:"since"`
	InTouch uint64    `json:"in_touch,omitempty"`
}

// Resources is what one engine may use on its node.
type Resources struct {
	CPUMHz   int `json:"cpu_mhz"`
	MemoryMB int `json:"memory_mb"`
}

// Engine is the row of an engine: the only truth about it (DESIGN section 1).
// It holds no key.
type Engine struct {
	EngineID  string `json:"engine_id"`
	ProductID string `json:"product_id"`
	// ProductSlug is for people who read the row or the job.
	ProductSlug string `json:"product_slug"`
	UserID      string `json:"user_id"`
	State       State  `json:"state"`
	Desired     State  `json:"desired"`
	Image       string `json:"image"` // as the caller named it
	// Digest ("sha256:...") is what Image meant when it was resolved, and what is
	// started. Empty: it was not resolved yet, and what Image means on the engine's
	// node is started; or there are no digests (raw_exec).
	Digest    string    `json:"digest,omitempty"`
	Resources Resources `json:"resources"`
	NodePool  string    `json:"node_pool,omitempty"`

	// KeyVersion is the version of the engine's key in Vault that callers get, and
	// KeyID the key's own name, which tells it from the key that a restored Vault
	// gave the same number. Empty: a version of the service wrote the key that knew
	// no names.
	KeyVersion int    `json:"key_version"`
	KeyID      string `json:"key_id,omitempty"`

	// EnvVersion is the version of the provider keys that its process has at
	// least; 0: not known, or none. RestartedFor is the version that it was last
	// restarted for.
	EnvVersion   int `json:"env_version,omitempty"`
	RestartedFor int `json:"restarted_for,omitempty"`

	NodeID     string `json:"node_id,omitempty"`
	VolumeID   string `json:"volume_id,omitempty"`
	VolumePath string `json:"volume_path,omitempty"`
	// VolumeName is the name of its volume in Nomad where that is not JobID: the
	// volume was registered again after Nomad had lost it. NextVolume is the name
	// that was last chosen for a registration; no name is chosen twice.
	VolumeName string `json:"volume_name,omitempty"`
	NextVolume string `json:"next_volume,omitempty"`
	AllocID    string `json:"alloc_id,omitempty"`
	URL        string `json:"url,omitempty"`
	// Vanished is set from when a process of the engine was missed until it is
	// confirmed that it is gone.
	Vanished *Vanished `json:"vanished,omitempty"`
	// Unproven are the allocations whose container may run although Nomad takes it for
	// ended. Before it is proved on the engine's node that it does not, no other
	// process is started and no volume is deleted. Proven are those that Nomad still
	// lists of which that was proved.
	Unproven []string `json:"unproven,omitempty"`
	Proven   []string `json:"proven,omitempty"`
	// Frozen is set while the engine is, or may be, frozen.
	Frozen *Frozen `json:"frozen,omitempty"`

	// Crash marks the last crash of AllocID that was dealt with
	// (cluster.Alloc.Crash).
	Crash int64 `json:"crash,omitempty"`
	// RunningSince is when the engine last became running; Restarts is what the
	// service has done since it last ran well.
	RunningSince time.Time `json:"running_since,omitzero"`
	Restarts     *Restarts `json:"restarts,omitempty"`

	CreatedAt    time.Time `json:"created_at"`
	LastHealthAt time.Time `json:"last_health_at,omitzero"`
	Reason       string    `json:"reason,omitempty"`
	Op           *Op       `json:"op,omitempty"`
	Last         *Ended    `json:"last,omitempty"` // the operation before
	// SleepPending is set while the leader asks whether a running engine may be
	// put to sleep (see Store.ProposeSleep). Whoever admits a user to the engine
	// clears it first.
	SleepPending string `json:"sleep_pending,omitempty"`
	// KeepAwakeUntil is until when a product wants the engine not to sleep.
	KeepAwakeUntil time.Time `json:"keep_awake_until,omitzero"`
	// Idempotency is the record of the operation that is under way, if it
	// carried a key.
	Idempotency *RecordRef `json:"idempotency,omitempty"`

	// Warm is the fingerprint of a warm engine: what kind of engine it is to
	// become. Unlabelled: its job still says that it waits for a user.
	Warm       string `json:"warm,omitempty"`
	Unlabelled bool   `json:"unlabelled,omitempty"`
	// KeyProofPath is where a warm engine proves its key, if its kind names a path.
	KeyProofPath string `json:"key_proof_path,omitempty"`

	// Index is the row's ModifyIndex in Consul: what a change compares.
	Index uint64 `json:"-"`
	// stored is the state that Consul holds at Index, to check moves against; sum
	// is of the value that it was decoded from.
	stored State
	sum    uint64
	// unknown is what a newer version of the service wrote into the row.
	unknown *unknown
}

// Clone returns a copy that shares nothing with e.
func (e *Engine) Clone() *Engine {
	c := *e
	if e.Op != nil {
		op := *e.Op
		c.Op = &op
	}
	if e.Last != nil {
		last := *e.Last
		c.Last = &last
	}
	if e.Restarts != nil {
		r := *e.Restarts
		c.Restarts = &r
	}
	if e.Frozen != nil {
		f := *e.Frozen
		c.Frozen = &f
	}
	if e.Vanished != nil {
		v := *e.Vanished
		c.Vanished = &v
	}
	if e.Idempotency != nil {
		ref := *e.Idempotency
		c.Idempotency = &ref
	}
	c.Unproven, c.Proven = slices.Clone(e.Unproven), slices.Clone(e.Proven)
	return &c
}

// JobID is the name of everything that belongs to the engine outside the
// registry: its Nomad job and Consul service, and its host volume unless that was
// registered again (Volume).
func (e *Engine) JobID() string { return JobID(e.EngineID) }

// JobID is the Nomad job, host volume and service name of an engine.
func JobID(engineID string) string { return jobPrefix + engineID }

const jobPrefix = "engine-"

// Volume is the name of the engine's host volume.
func (e *Engine) Volume() string { return cmp.Or(e.VolumeName, e.JobID()) }

// FreshVolumeName is a name for the engine's volume that was not chosen before:
// Nomad frees no name of a volume that it has lost.
func (e *Engine) FreshVolumeName() string {
	n := 1
	for _, name := range []string{e.VolumeName, e.NextVolume} {
		if _, registration := VolumeOf(name); registration > n {
			n = registration
		}
	}
	return e.JobID() + registrationMark + strconv.Itoa(n+1)
}

// registrationMark stands between the first name of a volume and the number of its
// registration, which is 2 or more.
const registrationMark = ".r"

// VolumeOf is the engine_id in the name of a volume, and the number of its
// registration: 1 for the volume that Nomad made, more for one that was registered
// with a directory that there was; 0 when the name is not that of an engine's
// volume.
func VolumeOf(name string) (engineID string, registration int) {
	rest, found := strings.CutPrefix(name, jobPrefix)
	if !found || rest == "" {
		return "", 0
	}
	id, number, registered := strings.Cut(rest, registrationMark)
	if !registered {
		return rest, 1
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 2 || strconv.Itoa(n) != number || id == "" {
		return "", 0
	}
	return id, n
}

// maxUserIDBytes is the longest user_id (SPEC section 1).
const maxUserIDBytes = 256

// ErrDotSegment is wrong with a user_id that has a segment which clients (WHATWG URL
// standard, "shorten a path") and proxies take out of a path, percent-encoded or not:
// the call would reach nobody, or another user.
var ErrDotSegment = errors.New(`user_id has a segment "." or ".." between slashes, which clients and proxies take out of paths`)

// CheckUserID says what is wrong with a user_id, in words for the caller, or
// returns nil: 1 to 256 bytes of UTF-8 without control characters (SPEC
// section 1). ErrDotSegment is checked last.
func CheckUserID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("user_id is empty")
	case len(id) > maxUserIDBytes:
		return fmt.Errorf("user_id is %d bytes long; at most %d are allowed", len(id), maxUserIDBytes)
	case !utf8.ValidString(id):
		return fmt.Errorf("user_id is not valid UTF-8")
	case strings.ContainsFunc(id, unicode.IsControl):
		return fmt.Errorf("user_id contains a control character")
	}
	for segment := range strings.SplitSeq(id, "/") {
		if segment == "." || segment == ".." {
			return ErrDotSegment
		}
	}
	return nil
}

// rowName is the part of a row's key below engines/: a shard from 00 to ff, the
// product and the user, encoded so that any user_id is one path segment.
func rowName(productID, userID string) string {
	return shard(productID, userID) + "/" + productID + "/" + base64.RawURLEncoding.EncodeToString([]byte(userID))
}

// shard spreads rows over 256 prefixes, so that a change costs the re-list of
// one of them.
func shard(productID, userID string) string {
	sum := sha256.Sum256([]byte(productID + "\x00" + userID))
	return hex.EncodeToString(sum[:1])
}

// shardOf is the shard in a row's name.
func shardOf(name string) string {
	shard, _, _ := strings.Cut(name, "/")
	return shard
}

// parseRowName is the inverse of rowName.
func parseRowName(name string) (productID, userID string, err error) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return "", "", fmt.Errorf("registry: row name %q has not three parts", name)
	}
	user, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return "", "", fmt.Errorf("registry: row name %q: %w", name, err)
	}
	// Also a name in another shard, or an unusual encoding: one user, one row.
	if want := rowName(parts[1], string(user)); name != want {
		return "", "", fmt.Errorf("registry: row name %q should be %q", name, want)
	}
	return parts[1], string(user), nil
}
