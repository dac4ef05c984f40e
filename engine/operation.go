package engine

import (
	"time"
)

// OpKind is the kind of an operation on an engine.
type OpKind string

// The kinds of operation in a row.
const (
	OpProvision OpKind = "provision"
	OpStart     OpKind = "start"
	OpStop      OpKind = "stop"
	OpDestroy   OpKind = "destroy"
	OpRotateKey OpKind = "rotate_key"
	// OpSleep stops an idle engine. An admit wakes it.
	OpSleep OpKind = "sleep"
	// OpRecover waits for the process that a failed engine has because Nomad restarted it
	// or its node is back.
	OpRecover OpKind = "recover"
	// OpRestart ends a running engine's process and starts a new one.
	OpRestart OpKind = "restart"
	// OpSnapshot copies the brain into the snapshot store. The engine goes on.
	OpSnapshot OpKind = "snapshot"
	// OpRestore gives an engine a new volume with the brain in a snapshot.
	OpRestore OpKind = "restore"
	// OpMove gives an engine's brain to another node. The engine goes on there with the same
	// key.
	OpMove OpKind = "move"
	// OpDrill restores a snapshot into a volume that is removed again, to show that it can be
	// restored. The engine goes on.
	OpDrill OpKind = "drill"
)

// Beside reports whether an operation of this kind leaves the engine as it is: it can be
// used meanwhile.
func (k OpKind) Beside() bool { return k == OpSnapshot || k == OpDrill }

// Operation is the operation in progress on an engine. While a row has one, calls get
// ENGINE_BUSY. If its owner is dead, another replica continues it from Step.
type Operation struct {
	ID       string    `json:"id"`
	Kind     OpKind    `json:"kind"`
	Step     string    `json:"step"`
	Owner    string    `json:"owner"`
	BeganAt  time.Time `json:"began_at"`
	Deadline time.Time `json:"deadline"`

	// From is the state in which the operation began. An undone start returns to it.
	From State `json:"from,omitempty"`
	// Undo is the error code because of which the operation is being undone; empty: it is
	// not. Reason is the row's reason for that.
	Undo   string `json:"undo,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Message is the message that the caller gets with Undo.
	Message string `json:"message,omitempty"`
	// KeyVersion is the version in Vault that a rotation writes, or that a warm engine has
	// while it is claimed. KeyID is the id of that key.
	KeyVersion int    `json:"key_version,omitempty"`
	KeyID      string `json:"key_id,omitempty"`
	// GiveUp: the engine is to be stopped or started, so a rotation that it has not
	// confirmed ends with its next process.
	GiveUp bool `json:"give_up,omitempty"`
	// EnvVersion is the version of the provider keys that a restart is for.
	EnvVersion int `json:"env_version,omitempty"`
	// JobIndex is the JobModifyIndex after this operation's registration. Only allocations
	// created after it belong to the operation.
	JobIndex uint64 `json:"job_index,omitempty"`
	// Supersedes is the replica whose operation this destroy interrupted, until that
	// replica has acknowledged it.
	Supersedes string `json:"supersedes,omitempty"`
	// Action is the operation's name in the audit log.
	Action string `json:"action,omitempty"`
	// Canary is a restart that tests whether a storm of failures is over. Its failure does
	// not count.
	Canary bool `json:"canary,omitempty"`
	// Worker is the node on which a worker of this operation runs, or waits for its turn.
	// Attempt is the number of that worker.
	Worker  string `json:"worker,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	// Taking is the snapshot that the operation makes, and Restoring the brain that it
	// restores.
	Taking    *Taking    `json:"taking,omitempty"`
	Restoring *Restoring `json:"restoring,omitempty"`
	// AuditID is the operation's row in the audit log. The replica that ends the operation
	// completes it.
	AuditID int64 `json:"audit_id,omitempty"`
	// RequestID is the id of the request that caused the operation, for the logs of all
	// replicas that run it.
	RequestID string `json:"request_id,omitempty"`
	// Trace is the span that caused the operation, as a value of the header traceparent.
	Trace string `json:"trace,omitempty"`
}

// Clone returns a deep copy of o.
func (o *Operation) Clone() *Operation {
	if o == nil {
		return nil
	}
	c := *o
	if o.Taking != nil {
		t := *o.Taking
		c.Taking = &t
	}
	if o.Restoring != nil {
		r := *o.Restoring
		c.Restoring = &r
	}
	return &c
}

// Ended is a finished operation, for callers that did not wait for it.
type Ended struct {
	ID      string    `json:"id"`
	Kind    OpKind    `json:"kind"`
	BeganAt time.Time `json:"began_at"`
	EndedAt time.Time `json:"ended_at"`
	// Code and Message are those of the error that the operation's caller got; empty: it
	// succeeded.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}
