package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/septemberai/orch/engine"
)

// mirrorOf runs a mirror of a separate store on a prefix.
func mirrorOf(t *testing.T, s *Store) *Mirror {
	t.Helper()
	m, stop := follow(s)
	t.Cleanup(stop)
	eventually(t, "the mirror is filled", func() error {
		select {
		case <-m.Synced():
			return nil
		default:
			return errors.New("not yet")
		}
	})
	return m
}

// follow runs a mirror of a store until stop is called.
func follow(s *Store) (m *Mirror, stop func()) {
	m = s.NewMirror(hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	return m, func() { cancel(); <-ended }
}

// names returns the users on all pages of a product, with n per page.
func names(t *testing.T, m *Mirror, product string, state engine.State, n int) []string {
	t.Helper()
	var users []string
	for q := (PageQuery{ProductID: product, State: state, Limit: n}); ; {
		rows, _, next, err := m.Page(q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range rows {
			users = append(users, e.UserID)
		}
		if next == "" {
			return users
		}
		q.Cursor = next
	}
}

// After any changes, the mirror of the store that made them shows them at once, and the
// mirror of another store soon; both as a fresh list would.
func TestMirrorFollows(t *testing.T) {
	at := prefix(t)
	r := join(t, at)
	own, other := mirrorOf(t, r.Store), mirrorOf(t, New(consulClient(t), at))
	products := []*engine.Product{r.product(t, nil), r.product(t, nil)}
	rows := map[string]*engine.Row{}
	for i := range 150 {
		user := fmt.Sprint("user-", rand.IntN(40))
		p := products[rand.IntN(2)]
		key := p.ProductID + user
		switch e := rows[key]; {
		case e == nil:
			rows[key] = r.claim(t, p, user)
		case e.State == engine.Destroying:
			if err := r.Remove(t.Context(), e, false); err != nil {
				t.Fatal(err)
			}
			delete(rows, key)
		default:
			next := slices.DeleteFunc(slices.Clone(engine.States), func(s engine.State) bool { return s == e.State || !engine.CanMove(e.State, s) })
			e.State = next[rand.IntN(len(next))]
			if err := r.Update(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 {
			sameAs(t, own, products, rows)
		}
	}
	sameAs(t, own, products, rows)
	eventually(t, "the other store's mirror has it all", func() error { return differs(other, products, rows) })
	for _, p := range products {
		if a, b := names(t, own, p.ProductID, "", 7), names(t, other, p.ProductID, "", 1000); !slices.Equal(a, b) {
			t.Errorf("pages differ: %v, %v", a, b)
		}
	}
}

func sameAs(t *testing.T, m *Mirror, products []*engine.Product, rows map[string]*engine.Row) {
	t.Helper()
	if err := differs(m, products, rows); err != nil {
		t.Fatal(err)
	}
}

func differs(m *Mirror, products []*engine.Product, rows map[string]*engine.Row) error {
	for _, p := range products {
		want, counts := map[string]engine.State{}, map[engine.State]int{}
		for _, s := range engine.States {
			counts[s] = 0
		}
		for _, e := range rows {
			if e.ProductID == p.ProductID {
				want[e.UserID] = e.State
				counts[e.State]++
			}
		}
		list, total, _, err := m.Page(PageQuery{ProductID: p.ProductID, Limit: 1000})
		if err != nil {
			return err
		}
		got := map[string]engine.State{}
		for _, e := range list {
			got[e.UserID] = e.State
		}
		if diff := cmp.Diff(want, got); diff != "" || total != len(want) {
			return fmt.Errorf("%d rows, want %d (-want +got):\n%s", total, len(want), diff)
		}
		if diff := cmp.Diff(counts, m.Counts(p.ProductID)); diff != "" {
			return fmt.Errorf("counts (-want +got):\n%s", diff)
		}
		if !slices.IsSortedFunc(list, before) {
			return errors.New("not sorted")
		}
	}
	return nil
}

// An older list, or an older event, neither restores a removed row nor hides a newer one.
func TestMirrorIgnoresOlderLists(t *testing.T) {
	m := (&Store{}).NewMirror(hclog.NewNullLogger())
	row := func(index uint64, s engine.State) *engine.Row {
		return &engine.Row{EngineID: "id", ProductID: "p", UserID: "u", State: s, Index: index}
	}
	name := rowName("p", "u")
	m.put(name, row(5, engine.Running))
	m.put(name, row(4, engine.Provisioning))
	if got := m.Counts("p"); got[engine.Running] != 1 || got[engine.Provisioning] != 0 {
		t.Errorf("an older row won: %v", got)
	}
	m.erased(row(5, engine.Destroying))
	m.put(name, row(5, engine.Running))
	if got := m.Counts("p"); got[engine.Running] != 0 {
		t.Errorf("a removed row came back: %v", got)
	}
	m.put(name, row(9, engine.Provisioning)) // the user's next engine
	if got := m.Counts("p"); got[engine.Provisioning] != 1 {
		t.Errorf("the next engine is missing: %v", got)
	}
}

func TestMirrorPages(t *testing.T) {
	m := (&Store{}).NewMirror(hclog.NewNullLogger())
	for i := range 10 {
		state := engine.Running
		if i%3 == 0 {
			state = engine.Stopped
		}
		// Two rows of each time: the id decides.
		m.put(rowName("p", fmt.Sprint(i)), &engine.Row{EngineID: fmt.Sprintf("id-%02d", i), ProductID: "p", UserID: fmt.Sprint(i), State: state, CreatedAt: time.Unix(int64(i/2), 5), Index: 1})
	}
	for _, c := range []struct {
		q     PageQuery
		want  []string
		total int
		more  bool
	}{
		{PageQuery{Limit: 3}, []string{"0", "1", "2"}, 10, true},
		{PageQuery{Limit: 10}, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, 10, false},
		{PageQuery{Limit: 3, Offset: 8}, []string{"8", "9"}, 10, false},
		{PageQuery{Limit: 3, Offset: 80}, nil, 10, false},
		{PageQuery{Limit: 3, State: engine.Stopped}, []string{"0", "3", "6"}, 4, true},
		{PageQuery{Limit: 3, State: engine.Stopped, Offset: 2}, []string{"6", "9"}, 4, false},
		{PageQuery{Limit: 3, State: engine.Failed}, nil, 0, false},
	} {
		c.q.ProductID = "p"
		rows, total, next, err := m.Page(c.q)
		var got []string
		for _, e := range rows {
			got = append(got, e.UserID)
		}
		if err != nil || !slices.Equal(got, c.want) || total != c.total || (next != "") != c.more {
			t.Errorf("%+v: %v of %d, next %q, %v", c.q, got, total, next, err)
		}
	}
	// A cursor stays valid when its row is gone.
	_, _, next, _ := m.Page(PageQuery{ProductID: "p", Limit: 4})
	m.erased(&engine.Row{EngineID: "id-03", ProductID: "p", UserID: "3", CreatedAt: time.Unix(1, 5), Index: 1})
	if rows, _, _, err := m.Page(PageQuery{ProductID: "p", Limit: 1, Cursor: next}); err != nil || rows[0].UserID != "4" {
		t.Errorf("after the cursor: %v, %v", rows, err)
	}
	for _, bad := range []string{"x", "%", "eA", "MTIz"} {
		if _, _, _, err := m.Page(PageQuery{ProductID: "p", Limit: 1, Cursor: bad}); !errors.Is(err, ErrCursor) {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
}

func TestMirrorLeavesOutDamagedRows(t *testing.T) {
	at := prefix(t)
	r := join(t, at)
	p := r.product(t, nil)
	r.claim(t, p, "good")
	bad := r.claim(t, p, "bad")
	r.put(t, "engines/"+rowName(p.ProductID, "bad"), []byte("{"))
	m := mirrorOf(t, New(consulClient(t), at))
	if got := names(t, m, p.ProductID, "", 10); !slices.Equal(got, []string{"good"}) {
		t.Errorf("got %v", got)
	}
	_ = bad
}

func BenchmarkMirrorPage(b *testing.B) {
	m := (&Store{}).NewMirror(hclog.NewNullLogger())
	for i := range 5000 {
		m.put(rowName("p", fmt.Sprint(i)), &engine.Row{EngineID: fmt.Sprint("id-", i), ProductID: "p", UserID: fmt.Sprint(i), State: engine.Running, CreatedAt: time.Unix(int64(rand.IntN(1_000_000)), 0), Index: 1})
	}
	for b.Loop() {
		if _, _, _, err := m.Page(PageQuery{ProductID: "p", Limit: 100, Offset: 2500}); err != nil {
			b.Fatal(err)
		}
	}
}

// A row that was removed so long ago that Consul has forgotten the removal, too, leaves the
// mirror with the next full list.
func TestForgottenRowIsNoGhost(t *testing.T) {
	r := join(t, prefix(t))
	ctx := t.Context()
	m := r.NewMirror(hclog.NewNullLogger())
	ghost := &engine.Row{EngineID: newName(), ProductID: "p", UserID: "ghost", State: engine.Running, Index: 1 << 40}
	m.put(rowName("p", "ghost"), ghost)
	for _, part := range mirrorParts {
		if err := m.list(ctx, string(part), false); err != nil {
			t.Fatal(err)
		}
	}
	if m.ByID(ghost.EngineID) == nil {
		t.Fatal("a list that may be older than the row removed it")
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); m.Run(running) }()
	t.Cleanup(func() { cancel(); <-done })
	<-m.Synced()
	if m.ByID(ghost.EngineID) != nil {
		t.Error("it is still there")
	}
}
