package server

import "github.com/septemberai/orch/engine"

// The request bodies. Every other endpoint accepts no body, or {}.
type (
	provisionBody struct {
		UserID        string  `json:"user_id"`
		EngineVersion *string `json:"engine_version"`
	}
	admitBody struct {
		AutoProvision bool `json:"auto_provision"`
		AutoWake      bool `json:"auto_wake"`
	}
	registerBody struct {
		Slug        string        `json:"slug"`
		DisplayName string        `json:"display_name"`
		Policy      engine.Policy `json:"policy"`
	}
	policyBody struct {
		Policy *engine.Policy `json:"policy"`
	}
	rotatePlatformKeyBody struct {
		OverlapSeconds int `json:"overlap_seconds"`
	}
	adoptBody struct {
		ProductID *string `json:"product_id"`
		UserID    *string `json:"user_id"`
	}
	adoptNodeBody struct {
		From           string `json:"from"`
		ProcessesEnded bool   `json:"processes_ended"`
	}
	snapshotBody struct {
		Label string `json:"label"`
	}
	restoreBody struct {
		SnapshotID *string `json:"snapshot_id"`
	}
	forkBody struct {
		UserID     string  `json:"user_id"`
		SnapshotID *string `json:"snapshot_id"`
	}
	importBody struct {
		SnapshotID *string `json:"snapshot_id"`
	}
	emptyBody struct{}
)
