package reconcile

import "testing"

// TestNudge: a pass that takes its time sees a nudge, and the pass after it answers it
// once.
func TestNudge(t *testing.T) {
	r := New(Deps{})
	if r.take() {
		t.Error("there was no nudge")
	}
	during := r.nudged() // what a pass that begins now goes by
	r.Nudge()
	r.Nudge()
	select {
	case <-during:
	default:
		t.Error("the pass that is under way is not told")
	}
	if !r.take() || r.take() {
		t.Error("two nudges at once are to be answered by one pass")
	}
	select {
	case <-r.nudged():
		t.Error("the nudge that was answered hurries the next pass")
	default:
	}
}
