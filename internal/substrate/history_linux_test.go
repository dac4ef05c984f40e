package substrate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	// errRefused: the index did not match, and nothing was changed.
	errRefused = errors.New("refused")
	// errReplaced: like errRefused, but the write was made.
	errReplaced = errors.New("refused, but it was made")
)

// register contains one value, which is written at the index at which it was read.
type register interface {
	// read returns 0 and "" if there is no value.
	read(ctx context.Context) (index uint64, value string, err error)
	// write returns the new index, even with errReplaced.
	write(ctx context.Context, at uint64, value string) (index uint64, err error)
}

// remover is a register whose value can be removed.
type remover interface {
	remove(ctx context.Context, at uint64) error
}

// history is the calls of concurrent writers.
type history struct {
	began time.Time

	mu    sync.Mutex
	calls []*call
}

// do makes one call and records its times; made fills in the response.
func (h *history) do(writer int, c call, made func(c *call) error) error {
	c.writer, c.invoked = writer, time.Since(h.began)
	err := made(&c)
	c.returned = time.Since(h.began)
	if err != nil {
		return fmt.Errorf("%s: %w", &c, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, &c)
	return nil
}

// count returns how many calls of a kind were made, or refused.
func (h *history) count(k kind, refused bool) int {
	n := 0
	for _, c := range h.calls {
		if c.kind == k && c.refused == refused {
			n++
		}
	}
	return n
}

const (
	writers = 4
	rounds  = 12
	// lastRound limits a history on a slow machine.
	lastRound = 15 * time.Second
)

// compareAndSet lets writers read and write a register, sometimes at indexes that they read
// long before, and fails the test unless the history is that of a register with
// compare-and-set.
func compareAndSet(t *testing.T, r register) *history {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seed := rand.Uint64()
	h := &history{began: time.Now()}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			dice := rand.New(rand.NewPCG(seed, uint64(w)))
			var seen []uint64
			for n := 0; n < rounds && time.Since(h.began) < lastRound; n++ {
				if err := h.turn(ctx, r, dice, w, n, &seen); err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := h.alone(ctx, r); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	if err := linearizable(h.calls); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	refused, replaced := h.count(write, true), h.count(overwrite, false)
	t.Logf("%d writes were made, %d refused, %d refused but made; %d removals", h.count(write, false), refused, replaced, h.count(remove, false))
	if refused+replaced == 0 {
		t.Error("the writers did not meet")
	}
	return h
}

// alone writes while nobody else does, which must succeed.
func (h *history) alone(ctx context.Context, r register) error {
	var at uint64
	reads := func(c *call) (err error) {
		c.index, c.value, err = r.read(ctx)
		at = c.index
		return err
	}
	return errors.Join(
		h.do(0, call{kind: read}, reads),
		h.do(0, call{kind: write, value: "alone"}, func(c *call) (err error) {
			c.at = at
			c.index, err = r.write(ctx, at, c.value)
			return err
		}),
		h.do(0, call{kind: read}, reads))
}

// turn reads the register and writes to it, or removes its value.
func (h *history) turn(ctx context.Context, r register, dice *rand.Rand, w, n int, seen *[]uint64) error {
	var at uint64
	if err := h.do(w, call{kind: read}, func(c *call) (err error) {
		c.index, c.value, err = r.read(ctx)
		at = c.index
		return err
	}); err != nil {
		return err
	}
	if !slices.Contains(*seen, at) {
		*seen = append(*seen, at)
	}
	if dice.IntN(5) == 0 {
		at = (*seen)[dice.IntN(len(*seen))]
	}
	if del, can := r.(remover); can && at != 0 && dice.IntN(4) == 0 {
		return h.do(w, call{kind: remove, at: at}, func(c *call) error {
			err := del.remove(ctx, at)
			if c.refused = errors.Is(err, errRefused); c.refused {
				return nil
			}
			return err
		})
	}
	return h.do(w, call{kind: write, at: at, value: fmt.Sprintf("%d-%d", w, n)}, func(c *call) (err error) {
		c.index, err = r.write(ctx, at, c.value)
		switch {
		case errors.Is(err, errReplaced):
			c.kind = overwrite
			return nil
		case errors.Is(err, errRefused):
			c.refused = true
			return nil
		}
		return err
	})
}
