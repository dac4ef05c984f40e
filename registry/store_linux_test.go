package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	consul "github.com/hashicorp/consul/api"

	"github.com/septemberai/orch/engine"
)

func newName() string { return strings.ToLower(rand.Text()) }

var (
	rows     = cmp.Options{cmpopts.IgnoreFields(engine.Row{}, "Stored"), cmpopts.IgnoreFields(engine.Product{}, "Stored")}
	anyOrder = cmpopts.SortSlices(func(a, b *engine.Row) bool { return a.UserID < b.UserID })
)

func newProduct(slug string, maxEngines *int) *engine.Product {
	return &engine.Product{
		ProductID: newName(), Slug: slug, DisplayName: "Product " + slug, Policy: engine.Policy{MaxEngines: maxEngines},
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond), PlatformKeyHash: newName(),
	}
}

// product creates a product and reads it back.
func (r *replica) product(t *testing.T, maxEngines *int) *engine.Product {
	t.Helper()
	p := newProduct(newName(), maxEngines)
	if err := r.CreateProduct(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	got, err := r.Product(t.Context(), p.ProductID)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// bySlug returns the product for which a slug is reserved.
func (r *replica) bySlug(ctx context.Context, slug string) (*engine.Product, error) {
	pair, err := r.get(ctx, r.slugKey(slug))
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, fmt.Errorf("%w: slug %q", ErrNotFound, slug)
	}
	return r.Product(ctx, string(pair.Value))
}

func ptr[T any](v T) *T { return &v }

func newEngine(p *engine.Product, user string) *engine.Row {
	return &engine.Row{
		EngineID: newName(), ProductID: p.ProductID, ProductSlug: p.Slug, UserID: user, State: engine.Provisioning, Desired: engine.Running,
		Image: "engine:1", Resources: engine.Resources{CPUMHz: 100, MemoryMB: 256}, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
		Op: &engine.Operation{ID: newName(), Kind: engine.OpProvision, Step: "volume", Owner: "me"},
	}
}

// claim creates an engine's row for a user.
func (r *replica) claim(t *testing.T, p *engine.Product, user string) *engine.Row {
	t.Helper()
	e := newEngine(p, user)
	if err := r.Claim(t.Context(), p, e, nil); err != nil {
		t.Fatal(err)
	}
	return e
}

// move moves a row through states.
func (r *replica) move(t *testing.T, e *engine.Row, to ...engine.State) {
	t.Helper()
	for _, s := range to {
		e.State = s
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatalf("to %s: %v", s, err)
		}
	}
}

func (r *replica) wantQuota(t *testing.T, p *engine.Product, want int) {
	t.Helper()
	if got, err := r.QuotaCount(t.Context(), p.ProductID); err != nil || got != want {
		t.Fatalf("quota count is %d, %v, want %d", got, err, want)
	}
}

func (r *replica) wantRow(t *testing.T, e *engine.Row) {
	t.Helper()
	got, err := r.Engine(t.Context(), e.ProductID, e.UserID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, got, rows); diff != "" {
		t.Fatalf("the row (-want +got):\n%s", diff)
	}
}

func (r *replica) wantNoRow(t *testing.T, e *engine.Row) {
	t.Helper()
	_, err := r.Engine(t.Context(), e.ProductID, e.UserID)
	wantErr(t, err, ErrNotFound)
}

// outcomes counts the results of n concurrent calls.
func outcomes(n int, call func(i int) error) map[string]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	counts := map[string]int{}
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			err := call(i)
			word := "OK"
			for _, known := range []error{ErrExists, ErrQuota, ErrConflict, ErrNoSession, ErrUnavailable, ErrNotFound} {
				if errors.Is(err, known) {
					word = known.Error()
				}
			}
			if err != nil && word == "OK" {
				word = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			counts[word]++
		})
	}
	close(begin)
	wg.Wait()
	return counts
}

func wantOutcomes(t *testing.T, got, want map[string]int) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("outcomes (-want +got):\n%s", diff)
	}
}

func TestCreateProduct(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		r := join(t, prefix(t))
		p := newProduct("demo", ptr(3))
		if err := r.CreateProduct(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		got, err := r.bySlug(t.Context(), "demo")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, rows, cmpopts.IgnoreFields(engine.Product{}, "Index")); diff != "" {
			t.Fatalf("product (-want +got):\n%s", diff)
		}
		if id, err := r.ProductIDByKey(t.Context(), p.PlatformKeyHash); err != nil || id != p.ProductID {
			t.Fatalf("the key's product is %q, %v, want %q", id, err, p.ProductID)
		}
		r.wantQuota(t, p, 0)
	})
	t.Run("ErrExists", func(t *testing.T) {
		r := join(t, prefix(t))
		const callers = 20
		products := make([]*engine.Product, callers)
		wantOutcomes(t, outcomes(callers, func(i int) error {
			products[i] = newProduct("one", nil)
			return r.CreateProduct(t.Context(), products[i])
		}), map[string]int{"OK": 1, ErrExists.Error(): callers - 1})
		winner, err := r.bySlug(t.Context(), "one")
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, p := range products {
			_, err := r.ProductIDByKey(t.Context(), p.PlatformKeyHash)
			switch {
			case p.ProductID == winner.ProductID && err == nil:
				left++
			case err == nil:
				t.Errorf("the key of a product that lost the race works")
			case !errors.Is(err, ErrNotFound):
				t.Fatal(err)
			}
		}
		if keys := r.keys(t); left != 1 || len(keys) != 4 {
			t.Fatalf("%d winners, %d keys, want 1 and the 4 of one product: %v", left, len(keys), keys)
		}
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		r := join(t, prefix(t))
		_, err := r.Product(t.Context(), "none")
		wantErr(t, err, ErrNotFound)
		_, err = r.ProductIDByKey(t.Context(), "none")
		wantErr(t, err, ErrNotFound)
		_, err = r.QuotaCount(t.Context(), "none")
		wantErr(t, err, ErrNotFound)
	})
}

// A count that was deleted or damaged manually is recreated exactly by the first caller
// that needs it, also with many concurrent callers. A count of no product is not created.
func TestRecount(t *testing.T) {
	spoil := map[string]func(*testing.T, *replica, *engine.Product){
		"Missing": func(t *testing.T, r *replica, p *engine.Product) {
			if _, err := r.client.KV().Delete(r.quotaKey(p.ProductID), nil); err != nil {
				t.Fatal(err)
			}
		},
		"Damaged": func(t *testing.T, r *replica, p *engine.Product) { r.put(t, "quota/"+p.ProductID, []byte("many")) },
		"Below0":  func(t *testing.T, r *replica, p *engine.Product) { r.put(t, "quota/"+p.ProductID, []byte("-3")) },
	}
	for name, spoil := range spoil {
		t.Run(name, func(t *testing.T) {
			at, limit := prefix(t), 9
			r, other := join(t, at), join(t, at)
			p, neighbour := r.product(t, &limit), r.product(t, nil)
			r.claim(t, neighbour, "u0")
			leaving := []*engine.Row{r.claim(t, p, "leaves"), r.claim(t, p, "leaves too")}
			for _, e := range leaving {
				r.move(t, e, engine.Running, engine.Destroying)
			}
			r.ForgetCounts()
			spoil(t, r, p)
			quotas, err := r.Quotas(t.Context())
			if err != nil || quotas[neighbour.ProductID].Count != 1 {
				t.Fatalf("%+v, %v", quotas, err)
			}
			const callers = 12 // 9 have a place after both have left
			wantOutcomes(t, outcomes(2, func(i int) error { return []*replica{r, other}[i].Remove(t.Context(), leaving[i], false) }), map[string]int{"OK": 2})
			r.wantQuota(t, p, 0)
			spoil(t, r, p)
			r.ForgetCounts()
			wantOutcomes(t, outcomes(callers, func(i int) error {
				return []*replica{r, other}[i%2].Claim(t.Context(), p, newEngine(p, fmt.Sprint("u", i)), nil)
			}), map[string]int{"OK": limit, ErrQuota.Error(): callers - limit})
			r.wantQuota(t, p, limit)
			spoil(t, r, p)
			tenants, _, err := other.Tenants(t.Context())
			if err != nil || len(tenants) != 2 || tenants[0].Engines+tenants[1].Engines != limit+1 {
				t.Fatalf("%+v, %v", tenants, err)
			}
		})
	}
	r := join(t, prefix(t))
	_, err := r.QuotaCount(t.Context(), "none")
	wantErr(t, err, ErrNotFound)
	if keys := r.keys(t); len(keys) > 0 {
		t.Errorf("made: %v", keys)
	}
}

func TestLookup(t *testing.T) {
	r := join(t, prefix(t))
	p := r.product(t, nil)
	e := r.claim(t, p, "user/1 ü")
	t.Run("OK", func(t *testing.T) {
		gotP, gotE, err := r.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, e.UserID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, gotP, rows); diff != "" {
			t.Errorf("product (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(e, gotE, rows); diff != "" {
			t.Errorf("engine (-want +got):\n%s", diff)
		}
	})
	t.Run("OKNoEngine", func(t *testing.T) {
		_, got, err := r.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, "nobody")
		if err != nil || got != nil {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
	t.Run("ErrOtherProduct", func(t *testing.T) {
		other := r.product(t, nil)
		_, _, err := r.Lookup(t.Context(), p.PlatformKeyHash, other.ProductID, e.UserID)
		wantErr(t, err, ErrNotFound)
	})
	t.Run("ErrKeyRevoked", func(t *testing.T) {
		gone := r.product(t, nil)
		if _, err := r.client.KV().Delete(r.platformKey(gone.PlatformKeyHash), nil); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.Lookup(t.Context(), gone.PlatformKeyHash, gone.ProductID, "user")
		wantErr(t, err, ErrNotFound)
	})
	t.Run("ErrProductDeleted", func(t *testing.T) {
		gone := r.product(t, nil)
		if _, err := r.client.KV().Delete(r.productKey(gone.ProductID), nil); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.Lookup(t.Context(), gone.PlatformKeyHash, gone.ProductID, "user")
		wantErr(t, err, ErrNotFound)
	})
}

func TestClaim(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, ptr(1))
		e := r.claim(t, p, "user-1")
		if e.Index == 0 {
			t.Error("the row has no index")
		}
		r.wantRow(t, e)
		r.wantQuota(t, p, 1)
		if at := r.keys(t)["engine-ids/"+e.EngineID]; at != "engines/"+rowName(p.ProductID, "user-1") {
			t.Fatalf("the index by id points to %q", at)
		}
	})
	t.Run("OKAnyUserID", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		var want []*engine.Row
		for _, user := range []string{"provision", "..", "a/b", "a b", "\U0001F600", strings.Repeat("x", 256), strings.Repeat("\U0001F600", 64)} {
			want = append(want, r.claim(t, p, user))
		}
		for _, e := range want {
			r.wantRow(t, e)
		}
		got, _, err := r.Engines(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, rows, anyOrder); diff != "" {
			t.Fatalf("rows (-want +got):\n%s", diff)
		}
	})
	t.Run("OKNoLimit", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		wantOutcomes(t, outcomes(30, func(i int) error {
			return r.Claim(t.Context(), p, newEngine(p, fmt.Sprint("user-", i)), nil)
		}), map[string]int{"OK": 30})
		r.wantQuota(t, p, 30)
	})
	// The quota is exact on any number of replicas.
	t.Run("ErrQuota", func(t *testing.T) {
		at := prefix(t)
		stores := []*replica{join(t, at), join(t, at)}
		p := stores[0].product(t, ptr(50))
		wantOutcomes(t, outcomes(60, func(i int) error {
			return stores[i%2].Claim(t.Context(), p, newEngine(p, fmt.Sprint("user-", i)), nil)
		}), map[string]int{"OK": 50, ErrQuota.Error(): 10})
		stores[1].wantQuota(t, p, 50)
		got, _, err := stores[0].Engines(t.Context())
		if err != nil || len(got) != 50 {
			t.Fatalf("%d rows, %v, want 50", len(got), err)
		}
	})
	// What one replica wrote last is outdated after another one has counted.
	t.Run("OKAfterAnotherReplica", func(t *testing.T) {
		at := prefix(t)
		here, there := join(t, at), join(t, at)
		p := here.product(t, ptr(3))
		e := here.claim(t, p, "user-1")
		there.claim(t, p, "user-2")
		here.claim(t, p, "user-3")
		here.wantQuota(t, p, 3)
		wantErr(t, here.Claim(t.Context(), p, newEngine(p, "user-4"), nil), ErrQuota)
		there.move(t, e, engine.Destroying)
		if err := there.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		there.wantQuota(t, p, 2)
		here.claim(t, p, "user-4")
		there.wantQuota(t, p, 3)
	})
	t.Run("ErrQuotaZero", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, ptr(0))
		wantErr(t, r.Claim(t.Context(), p, newEngine(p, "user"), nil), ErrQuota)
		if keys := r.keys(t); len(keys) != 4 {
			t.Fatalf("a refused claim left something behind: %v", keys)
		}
	})
	// A lowered limit evicts no user and admits no new one.
	t.Run("ErrQuotaTightened", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, ptr(3))
		for i := range 3 {
			r.claim(t, p, fmt.Sprint("user-", i))
		}
		p.Policy.MaxEngines = ptr(1)
		wantErr(t, r.Claim(t.Context(), p, newEngine(p, "user-4"), nil), ErrQuota)
		r.wantQuota(t, p, 3)
	})
	t.Run("ErrExists", func(t *testing.T) {
		at := prefix(t)
		stores := []*replica{join(t, at), join(t, at)}
		p := stores[0].product(t, ptr(10))
		const callers = 50
		engines := make([]*engine.Row, callers)
		wantOutcomes(t, outcomes(callers, func(i int) error {
			engines[i] = newEngine(p, "one")
			return stores[i%2].Claim(t.Context(), p, engines[i], nil)
		}), map[string]int{"OK": 1, ErrExists.Error(): callers - 1})
		stores[0].wantQuota(t, p, 1)
		ids := 0
		for name := range stores[0].keys(t) {
			if strings.HasPrefix(name, "engine-ids/") {
				ids++
			}
		}
		if ids != 1 {
			t.Fatalf("%d engine ids for one row", ids)
		}
	})
	// A user with an engine gets this error even when the product is full.
	t.Run("ErrExistsWhenFull", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, ptr(1))
		r.claim(t, p, "user")
		wantErr(t, r.Claim(t.Context(), p, newEngine(p, "user"), nil), ErrExists)
	})
	t.Run("ErrConflictProductChanged", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		changed := *p
		changed.Policy.MaxEngines = ptr(0)
		r.put(t, "products/"+p.ProductID, encode(&changed))
		e := newEngine(p, "user")
		wantErr(t, r.Claim(t.Context(), p, e, nil), ErrConflict)
		r.wantQuota(t, p, 0)
		r.wantNoRow(t, e)
	})
	t.Run("ErrConflictProductDeleted", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		if _, err := r.client.KV().Delete(r.productKey(p.ProductID), nil); err != nil {
			t.Fatal(err)
		}
		wantErr(t, r.Claim(t.Context(), p, newEngine(p, "user"), nil), ErrConflict)
	})
	t.Run("ErrIllegalMove", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		for _, s := range engine.States[1:] {
			e := newEngine(p, "user")
			e.State = s
			if err := r.Claim(t.Context(), p, e, nil); err == nil || !strings.Contains(err.Error(), "illegal move") {
				t.Errorf("an engine is born %s: %v", s, err)
			}
			r.wantNoRow(t, e)
		}
	})
	t.Run("ErrCancelled", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Claim(ctx, p, newEngine(p, "user"), nil); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestClaimPooledVolume(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	v := &PooledVolume{EngineID: newName(), NodeID: "node-1", VolumeID: "vol", Path: "/vol", Owner: "agent"}
	if err := r.PutPooledVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	engines := make([]*engine.Row, 10)
	wantOutcomes(t, outcomes(len(engines), func(i int) error {
		e := newEngine(p, fmt.Sprint("user-", i))
		e.EngineID, e.NodeID, e.VolumeID = v.EngineID, v.NodeID, v.VolumeID
		engines[i] = e
		return r.Claim(t.Context(), p, e, v)
	}), map[string]int{"OK": 1, ErrConflict.Error(): len(engines) - 1})
	r.wantQuota(t, p, 1)
	if pool, _, err := r.PooledVolumes(t.Context()); err != nil || len(pool) != 0 {
		t.Fatalf("the pool holds %v, %v after its volume was claimed", pool, err)
	}
	if got, _, err := r.Engines(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("%d engines have the volume, %v", len(got), err)
	}
}

func TestUpdate(t *testing.T) {
	r := join(t, prefix(t))
	p := r.product(t, nil)
	t.Run("OK", func(t *testing.T) {
		e := r.claim(t, p, "ok")
		before := e.Index
		e.Op.Step, e.VolumeID = "key", "vol"
		r.move(t, e, engine.Provisioning)
		if e.Index <= before {
			t.Errorf("index %d after %d", e.Index, before)
		}
		r.wantRow(t, e)
		e.Op = nil
		r.move(t, e, engine.Running, engine.Stopped, engine.Provisioning, engine.Failed, engine.Destroying)
		r.wantRow(t, e)
	})
	t.Run("ErrConflict", func(t *testing.T) {
		mine := r.claim(t, p, "conflict")
		theirs := mine.Clone()
		r.move(t, theirs, engine.Running)
		mine.State = engine.Failed
		index := mine.Index
		wantErr(t, r.Update(t.Context(), mine), ErrConflict)
		if mine.Index != index {
			t.Error("a refused write changed the index")
		}
		r.wantRow(t, theirs)
	})
	t.Run("ErrConflictOneWins", func(t *testing.T) {
		e := r.claim(t, p, "race")
		wantOutcomes(t, outcomes(20, func(i int) error {
			mine := e.Clone()
			mine.Reason = fmt.Sprint(i)
			return r.Update(t.Context(), mine)
		}), map[string]int{"OK": 1, ErrConflict.Error(): 19})
	})
	t.Run("ErrConflictGone", func(t *testing.T) {
		e := r.claim(t, p, "gone")
		r.move(t, e, engine.Destroying)
		late := e.Clone()
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		wantErr(t, r.Update(t.Context(), late), ErrConflict)
		r.wantNoRow(t, late)
	})
	t.Run("ErrIllegalMove", func(t *testing.T) {
		n := 0
		for _, path := range [][]engine.State{nil, {engine.Running}, {engine.Running, engine.Sleeping}, {engine.Running, engine.Stopped}, {engine.Failed}, {engine.Destroying}} {
			e := r.claim(t, p, fmt.Sprint("illegal-", len(path), path))
			r.move(t, e, path...)
			stored := e.State
			for _, to := range append([]engine.State{engine.Gone}, engine.States...) {
				if engine.CanMove(stored, to) {
					continue
				}
				n++
				wrong := e.Clone()
				wrong.State = to
				if err := r.Update(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "illegal move") {
					t.Errorf("%s to %q: %v", stored, to, err)
				}
				// A row that was read back also has its index.
				read, err := r.Engine(t.Context(), p.ProductID, e.UserID)
				if err != nil {
					t.Fatal(err)
				}
				read.State = to
				if err := r.Update(t.Context(), read); err == nil || !strings.Contains(err.Error(), "illegal move") {
					t.Errorf("%s to %q of a row read back: %v", stored, to, err)
				}
			}
			r.wantRow(t, e)
		}
		if n < 15 {
			t.Fatalf("only %d illegal moves tried", n)
		}
	})
}

func TestRemove(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, ptr(1))
	t.Run("OK", func(t *testing.T) {
		before := r.keys(t)
		e := r.claim(t, p, "ok")
		r.move(t, e, engine.Destroying)
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, r.keys(t)); diff != "" {
			t.Fatalf("keys after the engine's life (-before +after):\n%s", diff)
		}
		r.claim(t, p, "next") // its place is free
		got, err := r.Engine(t.Context(), p.ProductID, "next")
		if err != nil {
			t.Fatal(err)
		}
		r.move(t, got, engine.Destroying)
		if err := r.Remove(t.Context(), got, false); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("OKForgetVolume", func(t *testing.T) {
		e := newEngine(p, "forget")
		e.NodeID, e.VolumeID = "node-1", "vol-1"
		if err := r.Claim(t.Context(), p, e, nil); err != nil {
			t.Fatal(err)
		}
		r.move(t, e, engine.Destroying)
		if err := r.Remove(t.Context(), e, true); err != nil {
			t.Fatal(err)
		}
		r.wantNoRow(t, e)
		r.wantQuota(t, p, 0)
		unreachable, _, err := r.UnreachableVolumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []*UnreachableVolume{{EngineID: e.EngineID, NodeID: "node-1", VolumeID: "vol-1", ProductID: e.ProductID, UserID: e.UserID}}
		if diff := cmp.Diff(want, unreachable, cmpopts.IgnoreFields(UnreachableVolume{}, "Index", "Since")); diff != "" {
			t.Fatalf("unreachable volumes (-want +got):\n%s", diff)
		}
		stale := *unreachable[0]
		stale.Index--
		wantErr(t, r.DeleteUnreachableVolume(t.Context(), &stale), ErrConflict)
		if err := r.DeleteUnreachableVolume(t.Context(), unreachable[0]); err != nil {
			t.Fatal(err)
		}
		if unreachable, _, err = r.UnreachableVolumes(t.Context()); err != nil || len(unreachable) != 0 {
			t.Fatalf("unreachable volumes %v, %v after the last was deleted", unreachable, err)
		}
	})
	t.Run("ErrNotDestroying", func(t *testing.T) {
		e := r.claim(t, p, "alive")
		if err := r.Remove(t.Context(), e, false); err == nil || !strings.Contains(err.Error(), "illegal move") {
			t.Fatalf("a provisioning row was removed: %v", err)
		}
		r.wantRow(t, e)
		r.wantQuota(t, p, 1)
		r.move(t, e, engine.Destroying)
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("ErrConflict", func(t *testing.T) {
		e := r.claim(t, p, "changed")
		r.move(t, e, engine.Destroying)
		stale := e.Clone()
		e.Reason = "changed"
		r.move(t, e, engine.Destroying)
		wantErr(t, r.Remove(t.Context(), stale, true), ErrConflict)
		r.wantRow(t, e)
		r.wantQuota(t, p, 1)
		if unreachable, _, err := r.UnreachableVolumes(t.Context()); err != nil || len(unreachable) != 0 {
			t.Fatalf("a refused removal left an unreachable volume: %v, %v", unreachable, err)
		}
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		// A row that is removed twice is counted once.
		wantErr(t, r.Remove(t.Context(), e, false), ErrConflict)
		r.wantQuota(t, p, 0)
	})
	// Claims and removals on two replicas leave an exact count.
	t.Run("OKConcurrent", func(t *testing.T) {
		second := join(t, r.prefix)
		wide := r.product(t, nil)
		var claimed atomic.Int32
		wantOutcomes(t, outcomes(40, func(i int) error {
			s := []*replica{r, second}[i%2]
			e := newEngine(wide, fmt.Sprint("user-", i))
			if err := s.Claim(t.Context(), wide, e, nil); err != nil {
				return err
			}
			claimed.Add(1)
			if i%4 < 2 {
				return nil
			}
			e.State = engine.Destroying
			if err := s.Update(t.Context(), e); err != nil {
				return err
			}
			return s.Remove(t.Context(), e, false)
		}), map[string]int{"OK": 40})
		r.wantQuota(t, wide, 20)
	})
}

func TestReidentify(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, ptr(1))
	v := &PooledVolume{EngineID: newName(), NodeID: "node-2", VolumeID: "vol-2", Path: "/vol-2", Owner: "agent"}
	if err := r.PutPooledVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	e := r.claim(t, p, "user")
	oldID := e.EngineID

	t.Run("ErrConflict", func(t *testing.T) {
		stale := *v
		stale.Index--
		next := e.Clone()
		next.EngineID, next.NodeID = v.EngineID, v.NodeID
		wantErr(t, r.Reidentify(t.Context(), oldID, next, &stale), ErrConflict)
		r.wantRow(t, e)
	})
	t.Run("ErrConflictRow", func(t *testing.T) {
		next := e.Clone()
		next.Index--
		next.EngineID = newName()
		wantErr(t, r.Reidentify(t.Context(), oldID, next, nil), ErrConflict)
		r.wantRow(t, e)
	})
	t.Run("OK", func(t *testing.T) {
		next := e.Clone()
		next.EngineID, next.NodeID, next.VolumeID, next.VolumePath = v.EngineID, v.NodeID, v.VolumeID, v.Path
		if err := r.Reidentify(t.Context(), oldID, next, v); err != nil {
			t.Fatal(err)
		}
		r.wantRow(t, next)
		r.wantQuota(t, p, 1)
		keys := r.keys(t)
		if _, left := keys["engine-ids/"+oldID]; left || keys["engine-ids/"+v.EngineID] != "engines/"+rowName(p.ProductID, "user") {
			t.Fatalf("index by id: %v", keys)
		}
		if pool, _, err := r.PooledVolumes(t.Context()); err != nil || len(pool) != 0 {
			t.Fatalf("pool %v, %v", pool, err)
		}
		// The row continues under its new index.
		r.move(t, next, engine.Running, engine.Destroying)
		if err := r.Remove(t.Context(), next, false); err != nil {
			t.Fatal(err)
		}
		if keys := r.keys(t); len(keys) != 4 {
			t.Fatalf("left behind: %v", keys)
		}
	})
}

func TestEngines(t *testing.T) {
	t.Run("OKNone", func(t *testing.T) {
		r := join(t, prefix(t))
		if got, _, err := r.Engines(t.Context()); err != nil || len(got) != 0 {
			t.Fatalf("got %v, %v", got, err)
		}
	})
	for name, damage := range map[string]func(*engine.Product, *engine.Row) (key string, value []byte){
		"ErrNotJSON": func(p *engine.Product, e *engine.Row) (string, []byte) {
			return "engines/" + rowName(p.ProductID, "x"), []byte("not json")
		},
		"ErrEmpty": func(p *engine.Product, e *engine.Row) (string, []byte) {
			return "engines/" + rowName(p.ProductID, "x"), nil
		},
		"ErrOtherUser": func(p *engine.Product, e *engine.Row) (string, []byte) {
			return "engines/" + rowName(p.ProductID, "x"), encode(e)
		},
		"ErrOtherProduct": func(p *engine.Product, e *engine.Row) (string, []byte) {
			return "engines/" + rowName("other", e.UserID), encode(e)
		},
		"ErrShard": func(p *engine.Product, e *engine.Row) (string, []byte) {
			name := rowName(p.ProductID, e.UserID)
			return "engines/" + map[bool]string{true: "00", false: "01"}[name[:2] != "00"] + name[2:], encode(e)
		},
		"ErrParts": func(p *engine.Product, e *engine.Row) (string, []byte) { return "engines/00/x", encode(e) },
	} {
		t.Run(name, func(t *testing.T) {
			r := join(t, prefix(t))
			p := r.product(t, nil)
			e := r.claim(t, p, "user")
			key, value := damage(p, e)
			r.put(t, key, value)
			got, unreadable, err := r.Engines(t.Context())
			if err != nil || len(got) != 1 || got[0].EngineID != e.EngineID || len(unreadable) != 1 || unreadable[0].Newer {
				t.Fatalf("%d rows, beside %+v, %v", len(got), unreadable, err)
			}
			r.wantRow(t, e) // the intact row is still served
		})
	}
}

func TestPool(t *testing.T) {
	r := lead(t, prefix(t))
	follower := join(t, r.prefix)
	v := &PooledVolume{EngineID: newName(), NodeID: "node-1", Owner: "agent"}
	t.Run("ErrNotLeader", func(t *testing.T) {
		wantErr(t, follower.PutPooledVolume(t.Context(), v), ErrConflict)
		wantErr(t, follower.DeletePooledVolume(t.Context(), v), ErrConflict)
		wantErr(t, follower.DeleteUnreachableVolume(t.Context(), &UnreachableVolume{EngineID: "x"}), ErrConflict)
		if pool, _, err := r.PooledVolumes(t.Context()); err != nil || len(pool) != 0 {
			t.Fatalf("pool %v, %v", pool, err)
		}
	})
	// Consul refuses a replica that wrongly believes that it is the leader.
	t.Run("ErrLeadLost", func(t *testing.T) {
		follower.self.mu.Lock()
		was := follower.self.leader
		follower.self.leader = true
		follower.self.mu.Unlock()
		wantErr(t, follower.PutPooledVolume(t.Context(), v), ErrConflict)
		follower.self.mu.Lock()
		follower.self.leader = was
		follower.self.mu.Unlock()
		if pool, _, err := r.PooledVolumes(t.Context()); err != nil || len(pool) != 0 {
			t.Fatalf("pool %v, %v", pool, err)
		}
	})
	t.Run("OK", func(t *testing.T) {
		if err := r.PutPooledVolume(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if v.Ready() {
			t.Error("a volume without an id is ready")
		}
		stale := *v
		v.VolumeID, v.Path = "vol", "/vol"
		if err := r.PutPooledVolume(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		wantErr(t, r.PutPooledVolume(t.Context(), &stale), ErrConflict)
		wantErr(t, r.DeletePooledVolume(t.Context(), &stale), ErrConflict)
		got, _, err := follower.PooledVolumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]*PooledVolume{v}, got); diff != "" || !got[0].Ready() {
			t.Fatalf("pool (-want +got):\n%s", diff)
		}
		if err := r.DeletePooledVolume(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	})
	// A volume that was claimed between a list and a deletion belongs to its claimer: the
	// caller deletes the volume after this.
	t.Run("ErrConflictClaimed", func(t *testing.T) {
		p := r.product(t, nil)
		v := &PooledVolume{EngineID: newName(), NodeID: "node-1", VolumeID: "vol", Path: "/vol", Owner: "agent"}
		if err := r.PutPooledVolume(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		e := newEngine(p, "user")
		e.EngineID = v.EngineID
		if err := r.Claim(t.Context(), p, e, v); err != nil {
			t.Fatal(err)
		}
		wantErr(t, r.DeletePooledVolume(t.Context(), v), ErrConflict)
		wantErr(t, r.DeleteUnreachableVolume(t.Context(), &UnreachableVolume{EngineID: "none", Index: 7}), ErrConflict)
		// It cannot be claimed again under the next engine's row either.
		r.move(t, e, engine.Destroying)
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		again := newEngine(p, "other")
		again.EngineID = v.EngineID
		wantErr(t, r.Claim(t.Context(), p, again, v), ErrConflict)
		moved := r.claim(t, p, "moved")
		next := moved.Clone()
		next.EngineID = v.EngineID
		wantErr(t, r.Reidentify(t.Context(), moved.EngineID, next, v), ErrConflict)
		r.wantRow(t, moved)
	})
	t.Run("ErrUnreadable", func(t *testing.T) {
		r.put(t, "pool/volumes/node-1/id-1", encode(&PooledVolume{EngineID: "id-2", NodeID: "node-1"}))
		got, unreadable, err := r.PooledVolumes(t.Context())
		if err != nil || len(got) != 0 || len(unreadable) != 1 || unreadable[0].Name() != "id-1" {
			t.Fatalf("got %+v, beside %+v, %v", got, unreadable, err)
		}
		wantErr(t, follower.DeleteUnreadable(t.Context(), unreadable[0]), ErrConflict)
		if err := r.DeleteUnreadable(t.Context(), unreadable[0]); err != nil {
			t.Fatal(err)
		}
		if ids, err := r.PoolIDs(t.Context()); err != nil || len(ids) != 0 {
			t.Fatalf("left: %v, %v", ids, err)
		}
	})
}

func TestReplica(t *testing.T) {
	t.Run("ErrNoSessionBeforeJoin", func(t *testing.T) {
		r := join(t, prefix(t))
		p := r.product(t, nil)
		e := r.claim(t, p, "user")
		early := New(consulClient(t), r.prefix)
		early.Join(r.self.log)
		wantErr(t, early.Claim(t.Context(), p, newEngine(p, "other"), nil), ErrNoSession)
		wantErr(t, early.Update(t.Context(), e.Clone()), ErrNoSession)
		wantErr(t, early.Reidentify(t.Context(), e.EngineID, e.Clone(), nil), ErrNoSession)
		r.move(t, e, engine.Destroying)
		wantErr(t, early.Remove(t.Context(), e, false), ErrNoSession)
		r.wantRow(t, e)
		r.wantQuota(t, p, 1)
		// It can read.
		if _, err := early.Engine(t.Context(), p.ProductID, "user"); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("OKSessionLost", func(t *testing.T) {
		t.Parallel()
		r := lead(t, prefix(t))
		p := r.product(t, nil)
		e := r.claim(t, p, "user")
		destroying := r.claim(t, p, "destroying")
		r.move(t, destroying, engine.Destroying)
		lost, _ := r.self.current()
		if _, err := r.client.Session().Destroy(lost, nil); err != nil {
			t.Fatal(err)
		}
		// The replica does not know it yet; Consul does.
		next := e.Clone()
		next.State = engine.Running
		wantErr(t, r.Update(t.Context(), next), ErrNoSession)
		wantErr(t, r.Claim(t.Context(), p, newEngine(p, "other"), nil), ErrNoSession)
		wantErr(t, r.Reidentify(t.Context(), e.EngineID, e.Clone(), nil), ErrNoSession)
		wantErr(t, r.Remove(t.Context(), destroying, false), ErrNoSession)
		wantErr(t, r.PutPooledVolume(t.Context(), &PooledVolume{EngineID: "x", NodeID: "y"}), ErrConflict)
		r.wantRow(t, e)
		r.wantRow(t, destroying)
		r.wantQuota(t, p, 2)
		if ids, err := r.Replicas(t.Context()); err != nil || len(ids) != 0 {
			t.Fatalf("replicas %v, %v after the end of the only session", ids, err)
		}

		eventually(t, "the replica is back under its id, and leads", func() error {
			ids, err := r.Replicas(t.Context())
			if session, _ := r.self.current(); err != nil || !ids[r.self.ID] || session == lost || !r.self.Leader() {
				return fmt.Errorf("replicas %v, %w", ids, err)
			}
			return nil
		})
		if err := r.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("OKLeadMoves", func(t *testing.T) {
		t.Parallel()
		at := prefix(t)
		first := lead(t, at)
		second := join(t, at)
		if second.self.Leader() {
			t.Fatal("two replicas lead")
		}
		ids, err := second.Replicas(t.Context())
		if diff := cmp.Diff(map[string]bool{first.self.ID: true, second.self.ID: true}, ids); err != nil || diff != "" {
			t.Fatalf("replicas, %v (-want +got):\n%s", err, diff)
		}
		first.stop()
		if first.self.Leader() {
			t.Error("a replica that left leads")
		}
		if ids, err = second.Replicas(t.Context()); err != nil || ids[first.self.ID] {
			t.Fatalf("replicas %v, %v after the first left", ids, err)
		}
		eventually(t, "the second replica leads", func() error {
			if !second.self.Leader() {
				return errors.New("it does not")
			}
			return nil
		})
		if err := second.PutPooledVolume(t.Context(), &PooledVolume{EngineID: "id", NodeID: "node", Owner: "agent"}); err != nil {
			t.Fatal(err)
		}
		wantErr(t, first.PutPooledVolume(t.Context(), &PooledVolume{EngineID: "id2", NodeID: "node"}), ErrConflict)
	})
}

// TestErrUnavailable: every call reports a Consul that cannot be reached or has no leader.
func TestErrUnavailable(t *testing.T) {
	transport := &http.Transport{DisableKeepAlives: true}
	client, err := consul.NewClient(&consul.Config{Address: "127.0.0.1:1", Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	s, ctx := New(client, "t/"), t.Context()
	s.Join(nil).session = "some"
	s.Follow(&Deployment{Index: 1})
	e := &engine.Row{State: engine.Provisioning, Stored: kept{state: engine.Provisioning}}
	p := newProduct("x", nil)
	for name, call := range map[string]func() error{
		"Ping":               func() error { return s.Ping(ctx) },
		"CreateProduct":      func() error { return s.CreateProduct(ctx, p) },
		"ByKey":              func() error { _, err := s.ProductIDByKey(ctx, "x"); return err },
		"Product":            func() error { _, err := s.Product(ctx, "x"); return err },
		"Lookup":             func() error { _, _, err := s.Lookup(ctx, "x", "x", "x"); return err },
		"Claim":              func() error { return s.Claim(ctx, p, e, nil) },
		"Update":             func() error { return s.Update(ctx, e) },
		"Reidentify":         func() error { return s.Reidentify(ctx, "x", e, nil) },
		"Remove":             func() error { return s.Remove(ctx, &engine.Row{Stored: kept{state: engine.Destroying}}, false) },
		"Engine":             func() error { _, err := s.Engine(ctx, "x", "x"); return err },
		"Engines":            func() error { _, _, err := s.Engines(ctx); return err },
		"Replicas":           func() error { _, err := s.Replicas(ctx); return err },
		"UnreachableVolumes": func() error { _, _, err := s.UnreachableVolumes(ctx); return err },
		"Orphans":            func() error { _, err := s.Orphans(ctx); return err },
		"PoolIDs":            func() error { _, err := s.PoolIDs(ctx); return err },
		"Quotas":             func() error { _, err := s.Quotas(ctx); return err },
		"Held":               func() error { _, err := s.Held(ctx, "x"); return err },
		"Rollout":            func() error { _, err := s.Rollout(ctx); return err },
		"Request":            func() error { return s.RequestReconcile(ctx) },
		"Requested":          func() error { _, err := s.ReconcileRequested(ctx, 0); return err },
		"PooledVolumes":      func() error { _, _, err := s.PooledVolumes(ctx); return err },
		"QuotaCount":         func() error { _, err := s.QuotaCount(ctx, "x"); return err },
		"Deployment":         func() error { _, err := s.Deployment(ctx); return err },
		"Traces":             func() error { _, err := s.Traces(ctx); return err },
		"Quarantine":         func() error { _, err := s.Quarantine(ctx); return err },
		"Rebuild":            func() error { return s.Rebuild(ctx, p, e, nil) },
		"Correct":            func() error { return s.Correct(ctx, e, "x", nil) },
	} {
		t.Run(name, func(t *testing.T) { wantErr(t, call(), ErrUnavailable) })
	}
}

// A shared read is as fresh as a separate one: a caller reads at least its own writes,
// however many others read and leave meanwhile.
func TestLookupSeesWhatWasWrittenBefore(t *testing.T) {
	r := join(t, prefix(t))
	products := []*engine.Product{r.product(t, nil), r.product(t, nil)}
	var wg sync.WaitGroup
	for i := range 12 {
		p := products[i%2]
		e := r.claim(t, p, fmt.Sprint("user-", i))
		wg.Go(func() {
			for n := range 40 {
				e.Op.Step = fmt.Sprint("step-", n)
				if err := r.Update(t.Context(), e); err != nil {
					t.Error(err)
					return
				}
				_, got, err := r.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, e.UserID)
				if err != nil || got == nil || got.Op.Step != e.Op.Step {
					t.Errorf("wrote %q, read %+v, %v", e.Op.Step, got, err)
					return
				}
			}
		})
		wg.Go(func() {
			for range 40 {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Microsecond)
				_, _, err := r.Lookup(ctx, p.PlatformKeyHash, p.ProductID, e.UserID)
				cancel()
				if err != nil && !errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r.shared.flights != 0 || len(r.shared.turns) != 0 || len(r.shared.waiting) != 0 {
		t.Errorf("left: %d flights, %d turns, %d tenants", r.shared.flights, len(r.shared.turns), len(r.shared.waiting))
	}
}
