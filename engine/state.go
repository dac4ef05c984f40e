package engine

import "fmt"

// State is where an engine is in its life (SPEC section 4). A destroyed engine
// has no state: its row is gone.
type State string

// The six states of SPEC section 4.
const (
	Provisioning State = "provisioning"
	Running      State = "running"
	Sleeping     State = "sleeping"
	Stopped      State = "stopped"
	Failed       State = "failed"
	Destroying   State = "destroying"
)

// States lists every state in the order in which people read them.
var States = []State{Provisioning, Running, Sleeping, Stopped, Failed, Destroying}

// Gone is the state of an engine that has no row.
const Gone State = ""

// moves is the one table of legal moves. A destroy ends in Gone. Staying in
// a state is always legal: an operation records its steps without moving.
//
// Two entries are not in SPEC's list because it names outcomes, not steps: a
// start that could not be placed goes back to where it came from, so
// provisioning may return to stopped or sleeping.
//
// What is rebuilt from the witnesses of a row that the registry lost is not
// moved: see registry.Store.Rebuild.
var moves = map[State][]State{
	Gone:         {Provisioning},
	Provisioning: {Running, Failed, Stopped, Sleeping, Destroying},
	Running:      {Sleeping, Stopped, Failed, Destroying},
	Sleeping:     {Provisioning, Stopped, Destroying},
	Stopped:      {Provisioning, Destroying},
	Failed:       {Provisioning, Stopped, Destroying},
	Destroying:   {Gone},
}

// CanMove says whether an engine may go from one state to another in one write.
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

// CheckMove is CanMove as an error; a violation is a bug in the caller.
func CheckMove(from, to State) error {
	if !CanMove(from, to) {
		return fmt.Errorf("engine: illegal move from %q to %q", from, to)
	}
	return nil
}
