package scheduler

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestGates(t *testing.T) {
	var g gates
	var leaves []func()
	for range perProduct {
		leave, err := g.enter(t.Context(), "storm")
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	// Full: who comes waits, and goes when its request does. Others get in.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.enter(gone, "storm"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	leave, err := g.enter(t.Context(), "calm")
	if err != nil {
		t.Fatal(err)
	}
	leave()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			leave, err := g.enter(t.Context(), "storm")
			if err != nil {
				t.Error(err)
				return
			}
			leave()
		})
	}
	for _, leave := range leaves {
		leave()
	}
	wg.Wait()
	if len(g.open) != 0 {
		t.Errorf("%d gates are kept for nobody", len(g.open))
	}
}
