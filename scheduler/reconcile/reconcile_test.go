package reconcile

import "testing"

// TestTrigger: a long pass sees a trigger, and the next pass handles it once.
func TestTrigger(t *testing.T) {
	r := New(Deps{})
	if r.take() {
		t.Error("there was no trigger")
	}
	during := r.triggered() // the state for a pass that begins now
	r.Trigger()
	r.Trigger()
	select {
	case <-during:
	default:
		t.Error("the current pass does not see the trigger")
	}
	if !r.take() || r.take() {
		t.Error("two concurrent triggers must lead to one pass")
	}
	select {
	case <-r.triggered():
		t.Error("a handled trigger causes another pass")
	default:
	}
}
