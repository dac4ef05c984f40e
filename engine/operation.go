package engine

import (
	"time"
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

// Operation is the operation in progress of an engine. Its presence is what
// ENGINE_BUSY means; whoever finds it with an owner that is gone continues it
// from Step.
type Operation struct {
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
