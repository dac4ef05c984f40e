package audit

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
)

// Actions of the audit log.
const (
	ActionProvision          = "provision"
	ActionStart              = "start"
	ActionStop               = "stop"
	ActionSleep              = "sleep"
	ActionWake               = "wake"
	ActionDestroy            = "destroy"
	ActionRotateKey          = "rotate_key"
	ActionUpgrade            = "upgrade" // reserved
	ActionHealthFailed       = "health_failed"
	ActionHealthRecovered    = "health_recovered"
	ActionAutoRestartStart   = "auto_restart_start"
	ActionAutoRestartSuccess = "auto_restart_success"
	ActionAutoRestartFailed  = "auto_restart_failed"
	ActionAutoRestartGaveUp  = "auto_restart_gave_up"
	ActionAutoRestartHeld    = "auto_restart_held"
	ActionProductRegister    = "product_register"
	ActionProductDelete      = "product_delete"
	ActionPlatformKeyRotate  = "platform_key_rotate"
	ActionPolicyUpdate       = "policy_update"
	ActionAdmitDenied        = "admit_denied"
	ActionOrphanRemoved      = "orphan_removed"
	// ActionQuarantine: an engine is handed out to nobody until an admin decides by
	// ActionAdopt or ActionDiscard. ActionRegistryRecover: a registry that went back in
	// time was recovered.
	ActionQuarantine      = "quarantine"
	ActionAdopt           = "adopt"
	ActionDiscard         = "discard"
	ActionRegistryRecover = "registry_recover"
	// ActionAuthFailed: calls had wrong keys; one entry counts many.
	ActionAuthFailed = "auth_failed"
	// Of snapshots. ActionFork is an entry of the engine that the brain is from; the new
	// engine has an ActionProvision. ActionErase: the encryption key of a destroyed engine was
	// deleted, so that no copy of its snapshots can be read.
	ActionSnapshot       = "snapshot"
	ActionSnapshotDelete = "snapshot_delete"
	ActionRestore        = "restore"
	ActionDrill          = "drill"
	ActionFork           = "fork"
	ActionErase          = "erase"
	// ActionMove: an engine went to another node. ActionEvacuate: somebody asked for the move of
	// all engines of the node that the metadata names, by a call or by draining it;
	// ActionEvacuateCancel: somebody asked for its end.
	ActionMove           = "move"
	ActionEvacuate       = "evacuate"
	ActionEvacuateCancel = "evacuate_cancel"
	// ActionImport: an engine that only the snapshot store had is brought back.
	ActionImport = "import"
)

// Actions lists all actions: of engines, of their health, of products, of repairs, of
// snapshots, and of nodes.
var Actions = []string{
	ActionProvision, ActionStart, ActionStop, ActionSleep, ActionWake, ActionDestroy, ActionRotateKey, ActionUpgrade,
	ActionHealthFailed, ActionHealthRecovered, ActionAutoRestartStart, ActionAutoRestartSuccess, ActionAutoRestartFailed,
	ActionAutoRestartGaveUp, ActionAutoRestartHeld, ActionProductRegister, ActionProductDelete, ActionPlatformKeyRotate,
	ActionPolicyUpdate, ActionAdmitDenied, ActionOrphanRemoved, ActionQuarantine, ActionAdopt, ActionDiscard, ActionRegistryRecover,
	ActionAuthFailed, ActionSnapshot, ActionSnapshotDelete, ActionRestore, ActionDrill, ActionFork, ActionErase, ActionMove, ActionImport,
	ActionEvacuate, ActionEvacuateCancel,
}

// Outcomes that are not error codes.
const (
	// OutcomeOK: the change was made.
	OutcomeOK = "ok"
	// OutcomeInterrupted: the change was begun, and its end was not recorded.
	OutcomeInterrupted = "interrupted"
)

// actorSystem is the actor of changes that nobody requested.
const actorSystem = "system"

// MetadataBootMS is the metadata key for the duration of a boot in milliseconds, which
// [Log.Numbers] averages.
const MetadataBootMS = "boot_ms"

// Entry is one row of the log.
type Entry struct {
	ID        int64     // set by the database
	Timestamp time.Time // beginning, UTC, to the microsecond; zero means now
	ProductID string
	UserID    string
	EngineID  string
	Action    string
	Actor     string // "system", "admin", "admin:" with a key's name, or the product's slug
	RequestID string
	Outcome   string // "ok", an error code, or "interrupted"
	// Metadata contains details, stored as JSON, so numbers are read back as float64. It
	// must not contain secrets.
	Metadata   map[string]any
	DurationMS *int64 // nil: not finished, or not measured
}

// boots are the actions that boot an engine.
var boots = map[string]bool{ActionProvision: true, ActionStart: true, ActionWake: true, ActionAutoRestartSuccess: true}

// bootMS returns the duration of an entry's boot in milliseconds; nil if there was no boot
// or it was not measured.
func bootMS(action string, metadata map[string]any) *int64 {
	if !boots[action] {
		return nil
	}
	var ms int64
	switch v := metadata[MetadataBootMS].(type) {
	case int:
		ms = int64(v)
	case int64:
		ms = v
	case float64:
		ms = int64(math.Round(v))
	default:
		return nil
	}
	return &ms
}

// encodeMetadata encodes metadata as JSON. An error means that the caller passed a value
// that JSON cannot represent.
func encodeMetadata(metadata map[string]any) (string, error) {
	if len(metadata) == 0 {
		return "{}", nil
	}
	b, err := json.Marshal(metadata)
	if err != nil {
		return "", fmt.Errorf("audit: metadata: %w", err)
	}
	return string(b), nil
}

func decodeMetadata(text string) (map[string]any, error) {
	metadata := map[string]any{}
	if err := json.Unmarshal([]byte(text), &metadata); err != nil {
		return nil, fmt.Errorf("audit: a row's metadata is damaged: %w", err)
	}
	return metadata, nil
}

// clean makes s fit for a text column. PostgreSQL refuses NUL and invalid UTF-8, and a row
// must not fail because of a character.
func clean(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}

// stampOf rounds a time to the log's resolution.
func stampOf(t time.Time) time.Time {
	if t.IsZero() {
		t = time.Now()
	}
	return t.UTC().Truncate(time.Microsecond)
}

// stamp reads a time from either database.
type stamp struct{ time.Time }

// Scan reads PostgreSQL's time, or SQLite's microseconds since 1970.
func (s *stamp) Scan(v any) error {
	switch v := v.(type) {
	case time.Time:
		s.Time = v.UTC()
	case int64:
		s.Time = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("audit: cannot read a time from a %T", v)
	}
	return nil
}
