package registry

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRollout(t *testing.T) {
	at := prefix(t)
	leader := lead(t, at)
	follower := join(t, at)
	want := func(target int, halted bool) *Rollout {
		t.Helper()
		r, err := follower.Rollout(t.Context())
		if err != nil || r.TargetVersion != target || r.Halted != halted {
			t.Fatalf("%+v, %v, want version %d, halted %t", r, err, target, halted)
		}
		return r
	}
	request := func(version int) {
		t.Helper()
		if _, err := follower.RequestRollout(t.Context(), version, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	want(0, false)
	request(2)
	first := want(2, false)
	request(1) // an older one
	request(2)
	if diff := cmp.Diff(first, want(2, false)); diff != "" {
		t.Errorf("requested again (-want +got):\n%s", diff)
	}
	halted := *first
	halted.Failures, halted.Halted = 3, true
	wantErr(t, follower.UpdateRollout(t.Context(), &halted), ErrConflict)
	if err := leader.UpdateRollout(t.Context(), &halted); err != nil {
		t.Fatal(err)
	}
	wantErr(t, leader.UpdateRollout(t.Context(), first), ErrConflict)
	want(2, true)
	request(2)
	again := want(2, false)
	if diff := cmp.Diff(&Rollout{TargetVersion: 2}, again, cmpopts.IgnoreFields(Rollout{}, "RequestedAt", "Index")); diff != "" {
		t.Errorf("after a halt (-want +got):\n%s", diff)
	}
	request(3)
	want(3, false)
}
