package registry

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func waitingRead(tenant, key string) *sharedRead {
	return &sharedRead{tenant: tenant, keys: []string{key}, lead: make(chan struct{}), done: make(chan struct{})}
}

// However many reads of one tenant wait, every other tenant's read is in the next
// transaction.
func TestSharedReadsTakeTurns(t *testing.T) {
	var r sharedReads
	for i := range 1000 {
		r.enqueue(waitingRead("storm", fmt.Sprint("storm-", i)))
	}
	for i := range 20 {
		r.enqueue(waitingRead(fmt.Sprint("calm-", i), "key"))
	}
	r.handOver()
	batch := r.take(waitingRead("storm", "leader"))
	if len(batch) != maxSharedKeys {
		t.Errorf("%d reads in the transaction, want %d", len(batch), maxSharedKeys)
	}
	calm := map[string]bool{}
	for _, c := range batch {
		if c.tenant != "storm" {
			calm[c.tenant] = true
		}
	}
	if len(calm) != 20 {
		t.Errorf("%d of 20 other tenants are in the next transaction", len(calm))
	}
}

// No read is lost, returned twice, or left without a leader, in whatever order callers
// arrive, lead and leave.
func TestSharedReadsLoseNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, leading := sharedReads{}, []*sharedRead(nil)
		var known, waiting []*sharedRead
		forget := func(c *sharedRead) {
			waiting = slices.DeleteFunc(waiting, func(x *sharedRead) bool { return x == c })
			leading = slices.DeleteFunc(leading, func(x *sharedRead) bool { return x == c })
		}
		promoted := func() {
			for _, c := range slices.Clone(waiting) {
				select {
				case <-c.lead:
					forget(c)
					leading = append(leading, c)
				default:
				}
			}
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0, 1:
				c := waitingRead(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), "key")
				known = append(known, c)
				if r.flights < maxFlights {
					r.flights++
					close(c.lead)
					leading = append(leading, c)
				} else {
					r.enqueue(c)
					waiting = append(waiting, c)
				}
			case 2:
				if len(leading) == 0 {
					continue
				}
				for _, c := range r.take(leading[0]) {
					select {
					case <-c.done:
						t.Fatal("a read returned twice")
					default:
						close(c.done)
					}
					forget(c)
				}
				r.handOver()
				promoted()
			case 3:
				if len(known) == 0 {
					continue
				}
				c := rapid.SampledFrom(known).Draw(t, "leaver")
				select {
				case <-c.done:
				default:
					if slices.Contains(leading, c) || slices.Contains(waiting, c) {
						r.leave(c)
						forget(c)
						promoted()
					}
				}
			}
			if r.flights != len(leading) {
				t.Fatalf("%d flights, %d leaders", r.flights, len(leading))
			}
			if len(waiting) > 0 && r.flights == 0 {
				t.Fatalf("%d reads wait and nobody leads", len(waiting))
			}
			queued := 0
			for _, q := range r.waiting {
				queued += len(q)
			}
			if queued != len(waiting) || len(r.turns) != len(r.waiting) {
				t.Fatalf("%d queued, %d waiting; %d turns, %d tenants", queued, len(waiting), len(r.turns), len(r.waiting))
			}
		}
	})
}
