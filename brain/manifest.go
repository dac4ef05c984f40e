// Package brain holds what the service and the worker on a node say to one another about
// snapshots: the manifest of a snapshot, the orders of a worker, its reports, and the kinds
// of errors. docs/snapshots.md describes the format of a snapshot.
package brain

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"
)

// Format is the version of the format that this code writes. It reads this one alone.
const Format = 1

// Manifest describes a snapshot. It lies in the store beside the object, is not encrypted,
// and contains no secret. It is not signed either: who can write the store can replace it.
type Manifest struct {
	Format     int    `json:"format"`
	SnapshotID string `json:"snapshot_id"`
	EngineID   string `json:"engine_id"`
	ProductID  string `json:"product_id,omitempty"`
	UserID     string `json:"user_id,omitempty"`
	// EngineVersion and Image are of the engine whose brain it is.
	EngineVersion string `json:"engine_version,omitempty"`
	Image         string `json:"image,omitempty"`
	Trigger       string `json:"trigger,omitempty"`
	Label         string `json:"label,omitempty"`
	// Recipient is the public key (age) for which the object is encrypted.
	Recipient string    `json:"recipient"`
	CreatedAt time.Time `json:"created_at"` // when the engine was frozen
	StoredAt  time.Time `json:"stored_at"`  // when the object was complete
	FrozenMS  int64     `json:"frozen_ms"`
	Content
}

// Content is what the worker found, made and stored.
type Content struct {
	// SHA256 is of the stored object, TarSHA256 of the archive in it; both in hex.
	SHA256      string `json:"sha256"`
	TarSHA256   string `json:"tar_sha256"`
	StoredBytes int64  `json:"stored_bytes"`
	TarBytes    int64  `json:"tar_bytes"`
	// Bytes is the sum of the sizes of the files, with their holes.
	Bytes   int64 `json:"bytes"`
	Entries int64 `json:"entries"` // files, directories, links
	Skipped int64 `json:"skipped"` // sockets, devices, reserved names, and attributes without a place in an archive
	// Changed is how many files and directories somebody changed during the copy, although the
	// engine's process was frozen or had ended: they may be from two moments.
	Changed int64 `json:"changed,omitempty"`
}

var (
	idPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	sumPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// IsID reports whether id can be an engine's or a snapshot's id, which names objects.
func IsID(id string) bool { return idPattern.MatchString(id) }

// Check returns an error of the kind Corrupt if the manifest cannot be used: another format,
// or a field without which nothing can be restored.
func (m *Manifest) Check() error {
	switch {
	case m.Format != Format:
		return Errorf(Corrupt, "the manifest has format %d, this version reads %d", m.Format, Format)
	case !IsID(m.SnapshotID) || !IsID(m.EngineID):
		return Errorf(Corrupt, "the manifest has no valid ids")
	case !strings.HasPrefix(m.Recipient, "age1"):
		return Errorf(Corrupt, "the manifest has no recipient")
	}
	return m.Content.Check()
}

// Check returns an error of the kind Corrupt if sums or sizes are missing.
func (c *Content) Check() error {
	if !sumPattern.MatchString(c.SHA256) || !sumPattern.MatchString(c.TarSHA256) || c.StoredBytes <= 0 || c.TarBytes <= 0 {
		return Errorf(Corrupt, "sums or sizes are missing")
	}
	return nil
}

// ParseManifest reads a manifest and checks it. It ignores fields that it does not know.
func ParseManifest(text []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, Errorf(Corrupt, "the manifest is not JSON: %w", err)
	}
	return &m, m.Check()
}
