package reconcile

import "testing"

// TestTrigger: a pass that takes its time sees a trigger, and the pass after it answers it
// once.
func TestTrigger(t *testing.T) {
	r := New(Deps{})
	if r.take() {
		t.Error("there was no trigger")
	}
	during := r.triggered() // what a pass that begins now goes by
	r.Trigger()
	r.Trigger()
	select {
	case <-during:
	default:
		t.Error("the pass that is under way is not told")
	}
	if !r.take() || r.take() {
		t.Error("two triggers at once are to be answered by one pass")
	}
	select {
	case <-r.triggered():
		t.Error("the trigger that was answered triggers the next pass again")
	default:
	}
}
