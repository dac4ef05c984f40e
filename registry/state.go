package registry

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

// none is the state of an engine that has no row.
const none State = ""

// moves is the one table of legal moves. "Gone" is the move to none. Staying in
// a state is always legal: an operation records its steps without moving.
//
// Two entries are not in SPEC's list because it names outcomes, not steps: a
// start that could not be placed goes back to where it came from, so
// provisioning may return to stopped or sleeping.
//
// What is rebuilt from the witnesses of a row that the registry lost is not
// moved: see Store.Rebuild.
var moves = map[State][]State{
	none:         {Provisioning},
	Provisioning: {Running, Failed, Stopped, Sleeping, Destroying},
	Running:      {Sleeping, Stopped, Failed, Destroying},
	Sleeping:     {Provisioning, Stopped, Destroying},
	Stopped:      {Provisioning, Destroying},
	Failed:       {Provisioning, Stopped, Destroying},
	Destroying:   {none},
}

// CanMove says whether an engine may go from one state to another in one write.
func CanMove(from, to State) bool {
	if from == to {
		return from != none
	}
	for _, s := range moves[from] {
		if s == to {
			return true
		}
	}
	return false
}

// checkMove is CanMove as an error; a violation is a bug in the caller.
func checkMove(from, to State) error {
	if !CanMove(from, to) {
		return fmt.Errorf("registry: illegal move from %q to %q", from, to)
	}
	return nil
}
