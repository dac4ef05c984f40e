package engine

import "fmt"

// State is the state of an engine. A destroyed engine has no state, because its row is
// deleted.
type State string

// The states of an engine.
const (
	Provisioning State = "provisioning"
	Running      State = "running"
	Sleeping     State = "sleeping"
	Stopped      State = "stopped"
	Failed       State = "failed"
	Destroying   State = "destroying"
)

// States lists all states in the order in which they are shown.
var States = []State{Provisioning, Running, Sleeping, Stopped, Failed, Destroying}

// Gone is the state of an engine that has no row.
const Gone State = ""

// moves is the table of legal moves. A destroy ends in Gone. Staying in a state is always
// legal, because an operation records its steps without a move.
//
// Provisioning may return to stopped or sleeping, because a start that could not be placed
// returns to its previous state.
//
// Rows that are rebuilt from witnesses are not moved: see registry.Store.Rebuild.
var moves = map[State][]State{
	Gone:         {Provisioning},
	Provisioning: {Running, Failed, Stopped, Sleeping, Destroying},
	Running:      {Sleeping, Stopped, Failed, Destroying},
	Sleeping:     {Provisioning, Stopped, Destroying},
	Stopped:      {Provisioning, Destroying},
	Failed:       {Provisioning, Stopped, Destroying},
	Destroying:   {Gone},
}

// CanMove reports whether an engine may go from one state to another in one write.
func CanMove(from, to State) bool {
	if from == to {
		return from != Gone
	}
	for _, s := range moves[from] {
		if s == to {
			return true
		}
	}
	return false
}

// CheckMove returns an error if CanMove is false, which is a bug in the caller.
func CheckMove(from, to State) error {
	if !CanMove(from, to) {
		return fmt.Errorf("engine: illegal move from %q to %q", from, to)
	}
	return nil
}
