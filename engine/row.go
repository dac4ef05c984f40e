package engine

import (
	"slices"
	"time"
)

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
	// BrainMB is how much fits into its volume, in MiB; 0: as much as its node has.
	BrainMB int `json:"brain_mb,omitempty"`
}

// Row is the row of an engine: the only truth about it (DESIGN section 1).
// It holds no key.
type Row struct {
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
	// QuotaMB is the limit that its volume was given last, in MiB; 0: none.
	QuotaMB int `json:"quota_mb,omitempty"`
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

	CreatedAt    time.Time  `json:"created_at"`
	LastHealthAt time.Time  `json:"last_health_at,omitzero"`
	Reason       string     `json:"reason,omitempty"`
	Op           *Operation `json:"op,omitempty"`
	Last         *Ended     `json:"last,omitempty"` // the operation before
	// SleepPending is set while the leader asks whether a running engine may be
	// put to sleep (registry.Store.ProposeSleep). Whoever admits a user to the engine
	// clears it first.
	SleepPending string `json:"sleep_pending,omitempty"`
	// KeepAwakeUntil is until when a product wants the engine not to sleep.
	KeepAwakeUntil time.Time `json:"keep_awake_until,omitzero"`
	// Idempotency is the record of the operation that is under way, if it
	// carried a key.
	Idempotency *IdempotencyRef `json:"idempotency,omitempty"`

	// Warm is the fingerprint of a warm engine: what kind of engine it is to
	// become. Unlabelled: its job still says that it waits for a user.
	Warm       string `json:"warm,omitempty"`
	Unlabelled bool   `json:"unlabelled,omitempty"`
	// KeyProofPath is where a warm engine proves its key, if its kind names a path.
	KeyProofPath string `json:"key_proof_path,omitempty"`

	// Index is the version of the row in its store: a change is written only over the
	// version that was read.
	Index uint64 `json:"-"`
	// Stored is what the store keeps about the row as it was read; nothing else uses it.
	Stored any `json:"-"`
}

// Clone returns a copy that shares nothing with r.
func (r *Row) Clone() *Row {
	c := *r
	if r.Op != nil {
		op := *r.Op
		c.Op = &op
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
	c.Unproven, c.Proven = slices.Clone(r.Unproven), slices.Clone(r.Proven)
	return &c
}

// IdempotencyRef is what a row knows of the idempotency record of its operation while
// that is under way.
type IdempotencyRef struct {
	Key       string    `json:"key"`
	Body      string    `json:"body"`
	CreatedAt time.Time `json:"created_at"`
	// Kind is the operation that it is of; empty: the provision.
	Kind OpKind `json:"kind,omitempty"`
	// Expired is the index of the expired record that this one replaces.
	Expired uint64 `json:"-"`
	// Fresh: the record is to be made with the next write of the row. Replaces is the key
	// of the record of the operation that this one cuts short.
	Fresh    bool   `json:"-"`
	Replaces string `json:"-"`
}

// Succeeded says whether the operation of the record has closed without an error.
func (f *IdempotencyRef) Succeeded(r *Row) bool {
	if f.Kind == "" {
		return r.State == Running
	}
	return r.Op == nil && r.Last != nil && r.Last.Kind == f.Kind && r.Last.Code == "" && !r.Last.BeganAt.Before(f.CreatedAt)
}
