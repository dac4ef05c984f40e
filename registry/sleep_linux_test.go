package registry

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/septemberai/orch/engine"
)

func TestProposeSleep(t *testing.T) {
	t.Parallel()
	at := prefix(t)
	leader := lead(t, at)
	other := join(t, at)
	p := leader.product(t, nil)
	running := func(t *testing.T, user string) *engine.Row {
		t.Helper()
		e := leader.claim(t, p, user)
		e.Op = nil
		leader.move(t, e, engine.Running)
		return e
	}

	t.Run("OK", func(t *testing.T) {
		e := running(t, "ok")
		before := e.Index
		if err := leader.ProposeSleep(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if e.SleepPending == "" || e.Index <= before {
			t.Fatalf("pending %q at %d, %d before", e.SleepPending, e.Index, before)
		}
		leader.wantRow(t, e)
		// Again, as the next leader does: at another index, so that knowledge from the
		// first of them does not count.
		again := e.Clone()
		if err := leader.ProposeSleep(t.Context(), again); err != nil || again.Index <= e.Index || again.SleepPending == e.SleepPending {
			t.Fatalf("%q at %d, then %q at %d: %v", e.SleepPending, e.Index, again.SleepPending, again.Index, err)
		}
	})

	t.Run("OKAnOperationTakesTheMarkAway", func(t *testing.T) {
		e := running(t, "op")
		if err := leader.ProposeSleep(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		e.Op = &engine.Operation{ID: newName(), Kind: engine.OpRotateKey, Step: "new-key", Owner: "me"}
		if err := leader.Update(t.Context(), e); err != nil || e.SleepPending != "" {
			t.Fatalf("pending %q, %v", e.SleepPending, err)
		}
		leader.wantRow(t, e)
	})

	t.Run("ErrConflictRowChanged", func(t *testing.T) {
		e := running(t, "changed")
		stale := e.Clone()
		e.Reason = "changed"
		if err := other.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		wantErr(t, leader.ProposeSleep(t.Context(), stale), ErrConflict)
		if stale.SleepPending != "" {
			t.Error("the row that was refused is marked")
		}
		leader.wantRow(t, e)
	})

	t.Run("ErrConflictNotLeader", func(t *testing.T) {
		e := running(t, "follower")
		wantErr(t, other.ProposeSleep(t.Context(), e.Clone()), ErrConflict)
		leader.wantRow(t, e)
	})

	t.Run("ErrConflictLeadLost", func(t *testing.T) {
		e := running(t, "lost")
		lost, _ := leader.self.current()
		if _, err := leader.client.Session().Destroy(lost, nil); err != nil {
			t.Fatal(err)
		}
		wantErr(t, leader.ProposeSleep(t.Context(), e.Clone()), ErrConflict) // it has not seen it yet
		other.wantRow(t, e)
	})
}

func TestActivity(t *testing.T) {
	t.Parallel()
	at := prefix(t)
	a, b := join(t, at), join(t, at)
	read := func(t *testing.T) *Activity {
		t.Helper()
		view, err := b.Activity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return view
	}

	var written []*Flush
	for seq := range uint64(flushSlots + 3) {
		f := &Flush{
			Seq: seq + 1, After: seq, Seen: seq * 10, Served: Fingerprints{seq, 1<<64 - 1}, Flying: map[uint64]uint64{1<<64 - 1: seq},
		}
		if seq == 0 {
			f.Served, f.Flying = nil, nil
		}
		if err := a.PutFlush(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		written = append(written, f)
	}
	view := read(t)
	if diff := cmp.Diff(written[3:], view.Flushes[a.self.ID]); diff != "" {
		t.Errorf("what can be read of the flushes (-want +got):\n%s", diff)
	}
	if !slices.IsSortedFunc(written, func(x, y *Flush) int { return int(x.Index) - int(y.Index) }) || written[0].Index == 0 {
		t.Error("the flushes have no growing index")
	}
	if len(view.Replicas) != 2 || view.Replicas[a.self.ID] == 0 || view.Replicas[b.self.ID] == view.Replicas[a.self.ID] {
		t.Errorf("replicas %v", view.Replicas)
	}

	// The maximum content of a flush, and more than that.
	most := &Flush{Seq: 100, Flying: map[uint64]uint64{}}
	for i := range uint64(maxServed) {
		most.Served = append(most.Served, 1<<64-1-i)
	}
	for i := range uint64(maxFlying) {
		most.Flying[1<<64-1-i] = 1<<63 - i
	}
	if err := b.PutFlush(t.Context(), most); err != nil {
		t.Fatal(err)
	}
	if got := read(t).Flushes[b.self.ID]; len(got) != 1 || cmp.Diff(most, got[0]) != "" {
		t.Error("the largest flush is not read as it was written")
	}
	more := &Flush{Seq: 101, Served: append(most.Served, 1)}
	if err := b.PutFlush(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	if got := read(t).Flushes[b.self.ID][1]; !got.All || got.Served != nil {
		t.Errorf("too large a flush is %+v", got)
	}

	// A replica that lost its session cannot report, and its reports are gone.
	before := view.Replicas[a.self.ID]
	lost, _ := a.self.current()
	if _, err := a.client.Session().Destroy(lost, nil); err != nil {
		t.Fatal(err)
	}
	wantErr(t, a.PutFlush(t.Context(), &Flush{Seq: 200}), ErrNoSession)
	view = read(t)
	if _, there := view.Replicas[a.self.ID]; there || view.Flushes[a.self.ID] != nil {
		t.Errorf("a replica without a session: %+v", view)
	}
	eventually(t, "it is back, as another", func() error {
		if err := a.PutFlush(t.Context(), &Flush{Seq: 201}); err != nil {
			return err
		}
		if now := read(t).Replicas[a.self.ID]; now == 0 || now == before {
			return fmt.Errorf("its index is %d, %d before", now, before)
		}
		return nil
	})
	early := New(a.client, at)
	early.Join(a.self.log)
	wantErr(t, early.PutFlush(t.Context(), &Flush{Seq: 1}), ErrNoSession)
}

func TestSession(t *testing.T) {
	t.Parallel()
	r := join(t, prefix(t))
	held, _ := r.self.current()
	if got := r.self.Session(); got != held || got == "" {
		t.Fatalf("session %q, holds %q", got, held)
	}
	// Not renewed for longer than its TTL, as after a pause of the process: the session may
	// be gone.
	paused := &Replica{store: r.Store, log: r.self.log, session: held, renewed: time.Now().Add(-sessionTTL - time.Millisecond)}
	if got := paused.Session(); got != "" {
		t.Fatalf("session %q", got)
	}
	r.stop()
	if got := r.self.Session(); got != "" {
		t.Fatalf("session %q after it left", got)
	}
}

func TestFingerprints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Fingerprints(rapid.SliceOf(rapid.Uint64()).Draw(t, "fingerprints"))
		text, err := want.MarshalText()
		var got Fingerprints
		if err = errors.Join(err, got.UnmarshalText(text)); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v became %v, %v", want, got, err)
		}
	})
	for _, bad := range []string{"A", "AAAA", "!!!!"} {
		if err := new(Fingerprints).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if Fingerprint("a", "b") == Fingerprint("b", "a") || Fingerprint("ab", "c") == Fingerprint("a", "bc") {
		t.Error("engines that differ have one fingerprint")
	}
}
