package client

import (
	"context"
	"fmt"
	"time"
)

// Operation is a change of an engine that is in progress.
type Operation struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Step    string    `json:"step"` // the step that it is at, for humans
	BeganAt time.Time `json:"began_at"`
}

// LastOperation is the last finished change of an engine.
type LastOperation struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	BeganAt time.Time `json:"began_at"`
	EndedAt time.Time `json:"ended_at"`
	// Outcome is "ok", or the code of the error that a waiting call would have returned;
	// Message is the message of that error.
	Outcome string `json:"outcome"`
	Message string `json:"message,omitempty"`
}

// UnderWay is the error of a change whose caller chose not to wait for its end (see
// [RespondAsync]), or that takes longer than the service lets a call wait (Snapshot, Restore,
// Fork and Import). The change continues. [Client.Engine] shows it while it is in progress,
// and its outcome afterwards.
type UnderWay struct{ Engine *Engine }

func (u *UnderWay) Error() string {
	if u.Engine.Operation == nil {
		return "the operation ended meanwhile"
	}
	return fmt.Sprintf("the operation (%s) is in progress", u.Engine.Operation.Kind)
}

type preferAsync struct{}

// RespondAsync limits how long changes of engines (Provision, Start, Stop, RotateKey,
// Destroy, Snapshot, Restore, Fork, Import, and an Admit that creates or wakes an engine) wait for their end, in whole
// seconds. After that they return an [*UnderWay].
func RespondAsync(ctx context.Context, wait time.Duration) context.Context {
	return context.WithValue(ctx, preferAsync{}, fmt.Sprintf("respond-async, wait=%d", wholeSeconds(wait)))
}
