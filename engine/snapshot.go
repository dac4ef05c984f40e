package engine

import (
	"slices"
	"time"

	"github.com/septemberai/orch/brain"
)

// Why a snapshot was taken (brain.Manifest.Trigger).
const (
	TriggerCall     = "call"
	TriggerSchedule = "schedule"
	TriggerRestore  = "restore" // of the brain that a restore replaced
	TriggerFork     = "fork"
	TriggerMove     = "move" // of the brain that goes to another node
)

// SnapshotRef is the newest snapshot of the brain that an engine has: after a restore, the
// one that it was restored from. The snapshot itself is described by its manifest in the
// store.
type SnapshotRef struct {
	// ID is empty if the engine perhaps has snapshots, but none is complete.
	ID string `json:"id,omitempty"`
	// At is when the copy of the brain was made.
	At time.Time `json:"at,omitzero"`
	// SHA256 is that of the object, because a manifest is not signed.
	SHA256      string `json:"sha256,omitempty"`
	StoredBytes int64  `json:"stored_bytes,omitempty"`
}

// Taking is a snapshot in the making.
type Taking struct {
	SnapshotID string `json:"snapshot_id"`
	Trigger    string `json:"trigger"`
	Label      string `json:"label,omitempty"`
	Recipient  string `json:"recipient,omitempty"`
	UploadID   string `json:"upload_id,omitempty"`
	// Parts is how many parts the upload may have, of PartBytes each.
	Parts     int   `json:"parts,omitempty"`
	PartBytes int64 `json:"part_bytes,omitempty"`
	// AllocID is the allocation of the process that is frozen for the copy; empty: there is
	// none.
	AllocID string `json:"alloc_id,omitempty"`
	// Freezing is set from before the process may be frozen until it is known to go on.
	Freezing bool `json:"freezing,omitempty"`
	// FrozenMS is for how long it was frozen, in milliseconds.
	FrozenMS int64 `json:"frozen_ms,omitempty"`
	// At is when the copy began, by the service's clock.
	At time.Time `json:"at,omitzero"`
	// Result is what the worker reported when all was sent.
	Result *brain.Result `json:"result,omitempty"`
}

// Restoring is a brain in the making.
type Restoring struct {
	// EngineID and SnapshotID name the snapshot, and Content is what must come out; nil: the
	// operation takes the snapshot first, of the engine of UserID.
	EngineID   string         `json:"engine_id"`
	SnapshotID string         `json:"snapshot_id"`
	Content    *brain.Content `json:"content,omitempty"`
	UserID     string         `json:"user_id,omitempty"`
	// Recipient is the public key for which the snapshot is encrypted; empty: not known.
	Recipient string `json:"recipient,omitempty"`
	// At is when the snapshot was taken.
	At time.Time `json:"at,omitzero"`
	// Target is the volume that is filled, and Former the one that the engine had before.
	Target Place  `json:"target,omitzero"`
	Former *Place `json:"former,omitempty"`
	// Ended: the engine's process has been ended; of an engine that is moved at rest, it is
	// given its new volume. Lost: its node did not respond then, so it
	// ends when the node is back.
	Ended bool `json:"ended,omitempty"`
	Lost  bool `json:"lost,omitempty"`
	// Import: the registry had lost the engine, and only its snapshots and its keys were left.
	Import bool `json:"import,omitempty"`
	// Rescue: nobody asked for it but a policy, because the engine's node did not respond.
	Rescue bool `json:"rescue,omitempty"`
	// Unread: the brain before cannot be read, so there is no snapshot of it, and its volume is
	// kept.
	Unread bool `json:"unread,omitempty"`
	// The following are of the row before, if Lost.
	FormerVanished *Vanished `json:"former_vanished,omitempty"`
	FormerUnproven []string  `json:"former_unproven,omitempty"`
	FormerProven   []string  `json:"former_proven,omitempty"`
	// FormerKeyVersion and FormerKeyID are those of the key before.
	FormerKeyVersion int    `json:"former_key_version,omitempty"`
	FormerKeyID      string `json:"former_key_id,omitempty"`
}

// Place is where a brain is.
type Place struct {
	NodeID     string `json:"node_id,omitempty"`
	VolumeID   string `json:"volume_id,omitempty"`
	VolumePath string `json:"volume_path,omitempty"`
	VolumeName string `json:"volume_name,omitempty"`
	QuotaMB    int    `json:"quota_mb,omitempty"`
}

// Discarded is a former volume of an engine.
type Discarded struct {
	Place
	Since time.Time `json:"since"`
}

// Discard adds a former volume to the row.
func (r *Row) Discard(p Place, now time.Time) {
	if p.VolumeID == "" || p.VolumeID == r.VolumeID || r.HasLeft(p.VolumeID) {
		return
	}
	r.Discarded = append(r.Discarded, Discarded{p, now})
}

// HasLeft reports whether a volume is a former one of the engine.
func (r *Row) HasLeft(volumeID string) bool {
	return slices.ContainsFunc(r.Discarded, func(d Discarded) bool { return d.VolumeID == volumeID })
}

// Left reports whether the engine has left a node whose processes do not have its brain. A
// drill on a node shows nothing about that.
func (r *Row) Left(nodeID string) bool {
	return nodeID != r.NodeID && slices.ContainsFunc(r.Discarded, func(d Discarded) bool {
		name, _ := ParseVolume(d.VolumeName)
		return d.NodeID == nodeID && !name.Drill
	})
}

// Place returns where the engine's brain is.
func (r *Row) Place() Place {
	return Place{NodeID: r.NodeID, VolumeID: r.VolumeID, VolumePath: r.VolumePath, VolumeName: r.VolumeName, QuotaMB: r.QuotaMB}
}

// PutAt writes where the engine's brain is.
func (r *Row) PutAt(p Place) {
	r.NodeID, r.VolumeID, r.VolumePath, r.VolumeName, r.QuotaMB = p.NodeID, p.VolumeID, p.VolumePath, p.VolumeName, p.QuotaMB
}
