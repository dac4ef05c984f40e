package engine

import (
	"slices"
	"time"
)

// Restarts is the state of the automatic restarts of a failed engine. It is in the row so
// that a new leader continues it.
type Restarts struct {
	Attempts int       `json:"attempts"`
	NextAt   time.Time `json:"next_at"`
	// GaveUp: only a start by a call starts the engine again.
	GaveUp bool `json:"gave_up,omitempty"`
}

// Frozen is the process that a sleeping engine keeps (sleep_mode "pause"). It is in the row
// from before the process may be stopped (SIGSTOP) until the process is known to have
// resumed or ended.
type Frozen struct {
	AllocID string `json:"alloc_id"`
	URL     string `json:"url"`
	// Started is when the process was started (cluster.Alloc.Started). A process with a
	// later time is another one, which was never frozen.
	Started int64 `json:"started,omitempty"`
}

// Vanished is a process in the row whose allocation Nomad no longer knows, because its job
// was purged or Nomad lost its state. Such a process may be alive until its end is
// confirmed.
type Vanished struct {
	AllocID string `json:"alloc_id"`
	NodeID  string `json:"node_id"`
	// Since is the time from which on its node has been continuously connected to Nomad's
	// servers, but no earlier than when the process was first missed. InTouch identifies
	// that connection; 0: the node was not connected at the last check, or not checked.
	Since   time.Time `json:"since"`
	InTouch uint64    `json:"in_touch,omitempty"`
}

// Resources are the limits of an engine on its node, and what separates it from the node.
type Resources struct {
	CPUMHz   int `json:"cpu_mhz"`
	MemoryMB int `json:"memory_mb"`
	// BrainMB is the limit of its volume, in MiB; 0: no limit.
	BrainMB int `json:"brain_mb,omitempty"`
	// Isolation is that of its product's policy; empty: the docker daemon's default.
	Isolation string `json:"isolation,omitempty"`
}

// Row is the row of an engine: the only truth about it. It contains no key.
type Row struct {
	EngineID  string `json:"engine_id"`
	ProductID string `json:"product_id"`
	// ProductSlug is for people who read the row or the job.
	ProductSlug string `json:"product_slug"`
	UserID      string `json:"user_id"`
	State       State  `json:"state"`
	Desired     State  `json:"desired"`
	Image       string `json:"image"` // as the caller named it
	// Digest ("sha256:...") is the digest that Image was resolved to, and which is started.
	// Empty: it was not resolved yet, so the node starts whatever Image is there; or there
	// are no digests (raw_exec).
	Digest    string    `json:"digest,omitempty"`
	Resources Resources `json:"resources"`
	NodePool  string    `json:"node_pool,omitempty"`

	// KeyVersion is the version in Vault of the key that callers get. KeyID is the id of
	// that key, because a restored Vault may use the version number again. Empty: an
	// earlier version of the service wrote the key without an id.
	KeyVersion int    `json:"key_version"`
	KeyID      string `json:"key_id,omitempty"`

	// EnvVersion is the lowest version of the provider keys that its process can have; 0:
	// unknown, or none. RestartedFor is the version that it was last restarted for.
	EnvVersion   int `json:"env_version,omitempty"`
	RestartedFor int `json:"restarted_for,omitempty"`

	NodeID     string `json:"node_id,omitempty"`
	VolumeID   string `json:"volume_id,omitempty"`
	VolumePath string `json:"volume_path,omitempty"`
	// QuotaMB is the limit that its volume last got, in MiB; 0: none.
	QuotaMB int `json:"quota_mb,omitempty"`
	// VolumeName is the name of its volume in Nomad if it is not JobID, because the volume
	// was registered again after Nomad had lost it, or made by a restore. NextVolume is the
	// name that was last chosen; no name is chosen twice.
	VolumeName string `json:"volume_name,omitempty"`
	NextVolume string `json:"next_volume,omitempty"`
	// Discarded are its former volumes on nodes that did not respond when it got another
	// one. They are deleted when their nodes are back, and never used.
	Discarded []Discarded `json:"discarded,omitempty"`
	AllocID   string      `json:"alloc_id,omitempty"`
	URL       string      `json:"url,omitempty"`
	// TLS: the engine's job, as it was last registered, makes its processes serve TLS.
	TLS bool `json:"tls,omitempty"`
	// Vanished is set while a missed process of the engine is not confirmed to have ended.
	Vanished *Vanished `json:"vanished,omitempty"`
	// Unproven are the allocations whose container may still run although Nomad reports it
	// as ended. Until its end is proved on the engine's node, no other process is started
	// and no volume deleted. Proven are those that Nomad still lists although their end was
	// proved.
	Unproven []string `json:"unproven,omitempty"`
	Proven   []string `json:"proven,omitempty"`
	// Frozen is set while the engine is, or may be, frozen.
	Frozen *Frozen `json:"frozen,omitempty"`

	// Snapshot is its newest snapshot; nil: it never had one.
	Snapshot *SnapshotRef `json:"snapshot,omitempty"`

	// Drill is the last restore drill of one of its snapshots that had a result; nil: none had.
	Drill *Drill `json:"drill,omitempty"`
	// Recovery is how long it took when a snapshot of the engine was last restored, by a
	// restore or by a drill; nil: it never was.
	Recovery *Recovery `json:"recovery,omitempty"`

	// Crash identifies the last handled crash of AllocID (cluster.Alloc.Crash).
	Crash int64 `json:"crash,omitempty"`
	// RunningSince is when the engine last became running. Restarts counts what the service
	// has done since the engine last ran well.
	RunningSince time.Time `json:"running_since,omitzero"`
	Restarts     *Restarts `json:"restarts,omitempty"`

	CreatedAt    time.Time  `json:"created_at"`
	LastHealthAt time.Time  `json:"last_health_at,omitzero"`
	Reason       string     `json:"reason,omitempty"`
	Op           *Operation `json:"op,omitempty"`
	Last         *Ended     `json:"last,omitempty"` // the previous operation
	// SleepPending is set while the leader is deciding whether a running engine may be put
	// to sleep (registry.Store.ProposeSleep). An admit of the engine clears it first.
	SleepPending string `json:"sleep_pending,omitempty"`
	// KeepAwakeUntil is the time until which a product wants the engine to stay awake.
	KeepAwakeUntil time.Time `json:"keep_awake_until,omitzero"`
	// Idempotency refers to the record of the operation in progress, if its call had a key.
	Idempotency *IdempotencyRef `json:"idempotency,omitempty"`

	// Warm is the fingerprint of a warm engine, which names its kind. Unlabelled: its job
	// does not name its user yet.
	Warm       string `json:"warm,omitempty"`
	Unlabelled bool   `json:"unlabelled,omitempty"`
	// Shown is the state that its job shows in Nomad's UI, if that can be written; empty:
	// unknown.
	Shown string `json:"shown,omitempty"`
	// KeyProofPath is the path on which a warm engine proves its key, if its kind sets one.
	KeyProofPath string `json:"key_proof_path,omitempty"`

	// Index is the version of the row in its store: a change is written only over the
	// version that was read.
	Index uint64 `json:"-"`
	// Stored is what the store keeps about the row as it was read. Nothing else uses it.
	Stored any `json:"-"`
}

// Clone returns a deep copy of r.
func (r *Row) Clone() *Row {
	c := *r
	c.Op = r.Op.Clone()
	if r.Snapshot != nil {
		ref := *r.Snapshot
		c.Snapshot = &ref
	}
	if r.Drill != nil {
		d := *r.Drill
		c.Drill = &d
	}
	if r.Recovery != nil {
		rec := *r.Recovery
		c.Recovery = &rec
	}
	if r.Last != nil {
		last := *r.Last
		c.Last = &last
	}
	if r.Restarts != nil {
		restarts := *r.Restarts
		c.Restarts = &restarts
	}
	if r.Frozen != nil {
		f := *r.Frozen
		c.Frozen = &f
	}
	if r.Vanished != nil {
		v := *r.Vanished
		c.Vanished = &v
	}
	if r.Idempotency != nil {
		ref := *r.Idempotency
		c.Idempotency = &ref
	}
	c.Discarded = slices.Clone(r.Discarded)
	c.Unproven, c.Proven = slices.Clone(r.Unproven), slices.Clone(r.Proven)
	return &c
}

// IdempotencyRef is a row's reference to the idempotency record of its operation in
// progress.
type IdempotencyRef struct {
	Key       string    `json:"key"`
	Body      string    `json:"body"`
	CreatedAt time.Time `json:"created_at"`
	// Kind is the kind of the record's operation; empty: a provision.
	Kind OpKind `json:"kind,omitempty"`
	// Expired is the index of the expired record that this one replaces.
	Expired uint64 `json:"-"`
	// Fresh: the record is created with the next write of the row. Replaces is the key of
	// the record of the operation that this one interrupts.
	Fresh    bool   `json:"-"`
	Replaces string `json:"-"`
}

// Succeeded reports whether the record's operation has ended without an error.
func (f *IdempotencyRef) Succeeded(r *Row) bool {
	if f.Kind == "" {
		return r.State == Running
	}
	return r.Op == nil && r.Last != nil && r.Last.Kind == f.Kind && r.Last.Code == "" && !r.Last.BeganAt.Before(f.CreatedAt)
}
