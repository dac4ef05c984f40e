package client

import (
	"context"
	"fmt"
	"time"
)

// Operation is a change of an engine that is under way.
type Operation struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Step    string    `json:"step"` // how far it is, for people
	BeganAt time.Time `json:"began_at"`
}

// LastOperation is the last change of an engine that ended.
type LastOperation struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	BeganAt time.Time `json:"began_at"`
	EndedAt time.Time `json:"ended_at"`
	// Outcome is "ok", or the code of the error that a call which waited would have
	// returned; Message is that error's.
	Outcome string `json:"outcome"`
	Message string `json:"message,omitempty"`
}

// UnderWay is the error of a change whose caller did not want to wait for its end (see
// [RespondAsync]). The change goes on: [Client.Engine] shows it until it ended, and then
// how.
type UnderWay struct{ Engine *Engine }

func (u *UnderWay) Error() string {
	if u.Engine.Operation == nil {
		return "the operation ended meanwhile"
	}
	return fmt.Sprintf("the operation (%s) is under way", u.Engine.Operation.Kind)
}

type preferAsync struct{}

// RespondAsync makes changes of engines (Provision, Start, Stop, RotateKey, Destroy, and
// Admit where it makes or wakes one) wait for their end for so long at most, in whole
// seconds. After that they return an [*UnderWay].
func RespondAsync(ctx context.Context, wait time.Duration) context.Context {
	return context.WithValue(ctx, preferAsync{}, fmt.Sprintf("respond-async, wait=%d", wholeSeconds(wait)))
}
