package registry

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
)

// fleetOf returns a mirror with n engines of some products, and warm ones, on four nodes.
// Each two engines were created at the same time.
func fleetOf(n, products int) *Mirror {
	m := &Mirror{tenants: map[string]*tenantRows{}}
	began := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		e := &engine.Row{
			EngineID: fmt.Sprintf("e%06d", n-i), ProductID: fmt.Sprint("p", i%products), ProductSlug: fmt.Sprint("slug", i%products), UserID: fmt.Sprint("u", i/products),
			NodeID: fmt.Sprint("n", i%4), State: engine.States[i%len(engine.States)], CreatedAt: began.Add(time.Duration(i/2) * time.Second),
		}
		if i%10 == 0 {
			e.Reason = engine.ReasonCrashed
		}
		if i%50 == 7 {
			e.ProductID = engine.WarmProduct
		}
		t := m.tenants[e.ProductID]
		if t == nil {
			t = &tenantRows{counts: map[engine.State]int{}}
			m.tenants[e.ProductID] = t
		}
		t.insert(e)
	}
	return m
}

// ordered returns the rows of all users that a query selects, in the order of lists.
func ordered(m *Mirror, selects func(*engine.Row) bool) (ids []string) {
	var rows []*engine.Row
	for product, t := range m.tenants {
		for _, e := range t.rows {
			if product != engine.WarmProduct && selects(e) {
				rows = append(rows, e)
			}
		}
	}
	slices.SortFunc(rows, before)
	for _, e := range rows {
		ids = append(ids, e.EngineID)
	}
	return ids
}

// pages walks through all pages.
func pages(t *testing.T, m *Mirror, q FleetQuery, total int) (ids []string) {
	t.Helper()
	for {
		rows, n, next, err := m.FleetPage(q)
		if err != nil || n != total || len(rows) > q.Limit {
			t.Fatalf("%+v: %d rows of %d, want a total of %d, %v", q, len(rows), n, total, err)
		}
		for _, e := range rows {
			ids = append(ids, e.EngineID)
		}
		if q.Cursor = next; next == "" {
			return ids
		}
		if len(ids) >= total {
			t.Fatalf("%+v: after %d rows there are more pages, with a total of %d", q, len(ids), total)
		}
	}
}

func TestFleetPages(t *testing.T) {
	m := fleetOf(600, 7)
	for name, c := range map[string]struct {
		query   FleetQuery
		selects func(*engine.Row) bool
	}{
		"all":     {FleetQuery{}, func(*engine.Row) bool { return true }},
		"product": {FleetQuery{ProductID: "p3"}, func(e *engine.Row) bool { return e.ProductID == "p3" }},
		"state":   {FleetQuery{State: engine.Failed}, func(e *engine.Row) bool { return e.State == engine.Failed }},
		"node":    {FleetQuery{NodeID: "n2"}, func(e *engine.Row) bool { return e.NodeID == "n2" }},
		"reason":  {FleetQuery{Reason: engine.ReasonCrashed}, func(e *engine.Row) bool { return e.Reason == engine.ReasonCrashed }},
		"user":    {FleetQuery{UserID: "u5"}, func(e *engine.Row) bool { return e.UserID == "u5" }},
		"engine":  {FleetQuery{EngineID: "e000300"}, func(e *engine.Row) bool { return e.EngineID == "e000300" }},
		"two":     {FleetQuery{NodeID: "n1", ProductID: "p2"}, func(e *engine.Row) bool { return e.NodeID == "n1" && e.ProductID == "p2" }},
		"none":    {FleetQuery{NodeID: "no-such-node"}, func(*engine.Row) bool { return false }},
		"unknown": {FleetQuery{ProductID: "no-such-product"}, func(*engine.Row) bool { return false }},
		"warm":    {FleetQuery{ProductID: engine.WarmProduct}, func(*engine.Row) bool { return false }},
	} {
		t.Run(name, func(t *testing.T) {
			want := ordered(m, c.selects)
			for _, limit := range []int{1, 3, 100, 1000} {
				c.query.Limit = limit
				if diff := cmp.Diff(want, pages(t, m, c.query, len(want))); diff != "" {
					t.Errorf("limit %d: want (-), got (+):\n%s", limit, diff)
				}
			}
		})
	}
}

// A walk through all pages gets every engine that is there from its beginning to its end
// once, although the engine at the cursor goes, and others come.
func TestFleetPagesAreStable(t *testing.T) {
	m := fleetOf(200, 3)
	all := ordered(m, func(*engine.Row) bool { return true })
	gone, n := map[string]bool{}, len(all)
	q := FleetQuery{Limit: 10}
	var got []string
	for i := 0; ; i++ {
		rows, total, next, err := m.FleetPage(q)
		if err != nil || total != n {
			t.Fatalf("a total of %d, want %d, %v", total, n, err)
		}
		if i > n {
			t.Fatal("the walk does not end")
		}
		for _, e := range rows {
			got = append(got, e.EngineID)
		}
		if q.Cursor = next; next == "" {
			break
		}
		last := rows[len(rows)-1]
		m.tenants[last.ProductID].remove(last)
		gone[last.EngineID] = true
		m.tenants["p0"].insert(&engine.Row{EngineID: "new" + strconv.Itoa(i), ProductID: "p0", CreatedAt: rows[0].CreatedAt})
	}
	if diff := cmp.Diff(all, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if len(gone) < 10 {
		t.Errorf("only %d engines went: the test is blind", len(gone))
	}
}

func TestFleetCursor(t *testing.T) {
	m := fleetOf(20, 2)
	_, _, ofProduct, err := m.Page(PageQuery{ProductID: "p1", Limit: 1})
	if err != nil || ofProduct == "" {
		t.Fatalf("%q, %v", ofProduct, err)
	}
	for _, cursor := range []string{ofProduct, "nonsense", "AAAA"} {
		if _, _, _, err := m.FleetPage(FleetQuery{Limit: 1, Cursor: cursor}); !errors.Is(err, ErrCursor) {
			t.Errorf("%q: %v", cursor, err)
		}
	}
}

func TestByNode(t *testing.T) {
	m := fleetOf(600, 7)
	m.tenants["p0"].insert(&engine.Row{EngineID: "unplaced", State: engine.Provisioning})
	got, users, warm := m.ByNode(), 0, 0
	for node, n := range got {
		warm += n.Warm
		for state, count := range n.ByState {
			users += count
			want := len(ordered(m, func(e *engine.Row) bool { return e.NodeID == node && e.State == state }))
			if count != want {
				t.Errorf("%s has %d %s engines, want %d", node, count, state, want)
			}
		}
	}
	if len(got) != 4 || users != 600-12 || warm != 12 {
		t.Errorf("%d nodes, %d engines of users, %d warm", len(got), users, warm)
	}
}

// A page of the admin's list beside one of the product's, at 10,000 engines.
func BenchmarkPages(b *testing.B) {
	for _, products := range []int{1, 100} {
		m := fleetOf(10_000, products)
		_, _, middle, err := m.FleetPage(FleetQuery{Limit: 5000})
		if err != nil {
			b.Fatal(err)
		}
		for name, call := range map[string]func() error{
			"product": func() error { _, _, _, err := m.Page(PageQuery{ProductID: "p0", Limit: 100}); return err },
			"product-fail": func() error {
				_, _, _, err := m.Page(PageQuery{ProductID: "p0", Limit: 100, State: engine.Failed})
				return err
			},
			"admin":        func() error { _, _, _, err := m.FleetPage(FleetQuery{Limit: 100}); return err },
			"admin-middle": func() error { _, _, _, err := m.FleetPage(FleetQuery{Limit: 100, Cursor: middle}); return err },
			"admin-failed": func() error { _, _, _, err := m.FleetPage(FleetQuery{Limit: 100, State: engine.Failed}); return err },
			"admin-user":   func() error { _, _, _, err := m.FleetPage(FleetQuery{Limit: 100, UserID: "u5"}); return err },
			"admin-nodes":  func() error { m.ByNode(); return nil },
		} {
			b.Run(fmt.Sprintf("%s/%d-products", name, products), func(b *testing.B) {
				for b.Loop() {
					if err := call(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
