package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// legalMoves is the table of the legal moves: one line for each initial state; "gone" is an
// engine without a row. A running engine can fail, and a start that could not be placed
// returns to its previous state.
const legalMoves = `
from          | gone provisioning running sleeping stopped failed destroying
gone          |      x
provisioning  |      =            x       x        x       x      x
running       |                   =       x        x       x      x
sleeping      |      x                    =        x              x
stopped       |      x                             =              x
failed        |      x                             x       =      x
destroying    | x                                                 =
`

var allStates = append([]State{Gone}, States...)

func shown(s State) string {
	if s == Gone {
		return "gone"
	}
	return string(s)
}

// printMoves prints CanMove in the form of legalMoves; "=" is a move to the same state.
func printMoves() string {
	var b strings.Builder
	b.WriteString("\nfrom          |")
	for _, to := range allStates {
		b.WriteString(" " + shown(to))
	}
	b.WriteString("\n")
	for _, from := range allStates {
		line := fmt.Sprintf("%-14s|", shown(from))
		for _, to := range allStates {
			mark := ""
			switch {
			case !CanMove(from, to):
			case from == to:
				mark = "="
			default:
				mark = "x"
			}
			line += fmt.Sprintf(" %-*s", len(shown(to)), mark)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

func TestMoves(t *testing.T) {
	got := printMoves()
	t.Log(got)
	if diff := cmp.Diff(legalMoves, got); diff != "" {
		t.Fatalf("the legal moves are not those of legalMoves (-want +got):\n%s", diff)
	}
}

func TestStates(t *testing.T) {
	want := []State{"provisioning", "running", "sleeping", "stopped", "failed", "destroying"}
	if diff := cmp.Diff(want, States); diff != "" {
		t.Fatalf("states (-want +got):\n%s", diff)
	}
	for from, to := range moves {
		for _, s := range append([]State{from}, to...) {
			if s != Gone && !slices.Contains(States, s) {
				t.Errorf("the moves name %q, which is no state", s)
			}
		}
	}
}

// TestMovesProperty makes random moves of the table, and checks what holds in every engine's
// whole life.
func TestMovesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		any := rapid.OneOf(rapid.SampledFrom(allStates), rapid.Map(rapid.String(), func(s string) State { return State(s) }))
		at := Gone
		for range 40 {
			to := any.Draw(t, "to")
			ok := CanMove(at, to)
			if (CheckMove(at, to) == nil) != ok {
				t.Fatalf("checkMove and CanMove disagree on %q to %q", at, to)
			}
			switch {
			case to != Gone && !slices.Contains(States, to):
				if ok {
					t.Fatalf("%q may move to %q, which is no state", at, to)
				}
			case at == Gone && ok != (to == Provisioning):
				t.Fatalf("none to %q: %v; a life begins with provisioning alone", to, ok)
			case at == Destroying && ok != (to == Gone || to == Destroying):
				t.Fatalf("destroying to %q: %v; nothing leaves destroying", to, ok)
			case at != Gone && to == Destroying && !ok:
				t.Fatalf("%q may not be destroyed", at)
			case to == Gone && ok && at != Destroying:
				t.Fatalf("%q can be gone without being destroyed", at)
			case to == Running && ok && at != Provisioning && at != Running:
				t.Fatalf("%q may run without being provisioned", at)
			}
			if ok {
				at = to
			}
		}
	})
}
