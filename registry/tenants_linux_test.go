package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
)

// knows reports whether a platform key hash belongs to the product, on every path.
func (r *replica) knows(t *testing.T, p *engine.Product, hash string) bool {
	t.Helper()
	_, _, err := r.Lookup(t.Context(), hash, p.ProductID, "user")
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func TestRotatePlatformKey(t *testing.T) {
	r := join(t, prefix(t))
	rotate := func(t *testing.T, p *engine.Product, overlap time.Duration) string {
		t.Helper()
		hash := newName()
		if _, err := r.RotatePlatformKey(t.Context(), p.ProductID, hash, overlap); err != nil {
			t.Fatal(err)
		}
		return hash
	}
	t.Run("OldKeyEndsAtOnce", func(t *testing.T) {
		p := r.product(t, nil)
		next := rotate(t, p, 0)
		if r.knows(t, p, p.PlatformKeyHash) || !r.knows(t, p, next) {
			t.Error("the old key works, or the new one does not")
		}
		if _, there := r.keys(t)["platform-keys/"+p.PlatformKeyHash]; there {
			t.Error("the old key's index is still there")
		}
	})
	t.Run("BothWorkUntilTheOverlapEnds", func(t *testing.T) {
		p := r.product(t, nil)
		next := rotate(t, p, 700*time.Millisecond)
		if !r.knows(t, p, p.PlatformKeyHash) || !r.knows(t, p, next) {
			t.Error("one of the two does not work")
		}
		eventually(t, "the overlap ends", func() error {
			if r.knows(t, p, p.PlatformKeyHash) {
				return errors.New("the old key works")
			}
			return nil
		})
		if !r.knows(t, p, next) {
			t.Error("the new key does not work")
		}
	})
	t.Run("NoOverlapEndsAllEarlierKeys", func(t *testing.T) {
		p := r.product(t, nil)
		second := rotate(t, p, time.Hour)
		third := rotate(t, p, time.Hour)
		if !r.knows(t, p, p.PlatformKeyHash) || !r.knows(t, p, second) || !r.knows(t, p, third) {
			t.Error("one of the three does not work")
		}
		last := rotate(t, p, 0)
		if r.knows(t, p, p.PlatformKeyHash) || r.knows(t, p, second) || r.knows(t, p, third) || !r.knows(t, p, last) {
			t.Error("an earlier key works, or the last one does not")
		}
	})
	t.Run("EarlierKeysAreBounded", func(t *testing.T) {
		p := r.product(t, nil)
		for range maxRetiredKeys + 3 {
			rotate(t, p, time.Hour)
		}
		got, err := r.Tenant(t.Context(), p.ProductID)
		if err != nil || len(got.RetiredKeys) != maxRetiredKeys {
			t.Errorf("%d earlier keys, %v", len(got.RetiredKeys), err)
		}
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		_, err := r.RotatePlatformKey(t.Context(), "nobody", newName(), 0)
		wantErr(t, err, ErrNotFound)
	})
}

func always(engine.Policy) error { return nil }

func TestSetPolicy(t *testing.T) {
	r := join(t, prefix(t))
	p := r.product(t, nil)
	limit := 7
	want := engine.Policy{MaxEngines: &limit, EngineImage: "engine:2"}
	if _, err := r.SetPolicy(t.Context(), p.ProductID, want, always); err != nil {
		t.Fatal(err)
	}
	got, _, err := r.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, "user")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Policy); diff != "" {
		t.Error(diff)
	}
	// A claim with the previous policy is refused.
	wantErr(t, r.Claim(t.Context(), p, newEngine(p, "user"), nil), ErrConflict)
	_, err = r.SetPolicy(t.Context(), "nobody", want, always)
	wantErr(t, err, ErrNotFound)
}

func TestTenants(t *testing.T) {
	r := join(t, prefix(t))
	first, second := r.product(t, nil), r.product(t, nil)
	r.claim(t, second, "one")
	r.claim(t, second, "two")
	got, _, err := r.Tenants(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].ProductID != first.ProductID && !first.CreatedAt.Equal(second.CreatedAt) {
		t.Fatalf("got %+v", got)
	}
	for _, tenant := range got {
		if want := map[string]int{first.ProductID: 0, second.ProductID: 2}[tenant.ProductID]; tenant.Engines != want {
			t.Errorf("%s has %d engines, want %d", tenant.Slug, tenant.Engines, want)
		}
	}
}

func TestDeleteProduct(t *testing.T) {
	r := join(t, prefix(t))
	t.Run("OK", func(t *testing.T) {
		p := r.product(t, nil)
		r.put(t, "rate/"+p.ProductID, []byte("{}"))
		r.put(t, "idempotency/"+p.ProductID+"/key", []byte("{}"))
		if err := r.DeleteProduct(t.Context(), p.ProductID); err != nil {
			t.Fatal(err)
		}
		for key, value := range r.keys(t) {
			if strings.Contains(key+value, p.ProductID) || strings.Contains(key, p.Slug) || strings.Contains(key, p.PlatformKeyHash) {
				t.Errorf("left: %s", key)
			}
		}
		wantErr(t, r.DeleteProduct(t.Context(), p.ProductID), ErrNotFound)
	})
	t.Run("ErrHasEngines", func(t *testing.T) {
		p := r.product(t, nil)
		r.claim(t, p, "user")
		wantErr(t, r.DeleteProduct(t.Context(), p.ProductID), ErrHasEngines)
	})
	// However a deletion races with claims, there is never an engine without a product.
	t.Run("Race", func(t *testing.T) {
		for range 10 {
			p := r.product(t, nil)
			var wg sync.WaitGroup
			var claimed, deleted error
			wg.Go(func() { claimed = r.Claim(t.Context(), p, newEngine(p, "user"), nil) })
			wg.Go(func() { deleted = r.DeleteProduct(t.Context(), p.ProductID) })
			wg.Wait()
			if (claimed == nil) == (deleted == nil) {
				t.Fatalf("claim: %v, deletion: %v", claimed, deleted)
			}
		}
	})
}

// The record of an Idempotency-Key follows the row of its provision.
func TestIdempotency(t *testing.T) {
	r := join(t, prefix(t))
	p := r.product(t, nil)
	begin := func(t *testing.T, user string) *engine.Row {
		t.Helper()
		e := newEngine(p, user)
		e.Idempotency = &engine.IdempotencyRef{Key: newName(), Body: "body", CreatedAt: time.Now().UTC()}
		if err := r.Claim(t.Context(), p, e, nil); err != nil {
			t.Fatal(err)
		}
		return e
	}
	want := func(t *testing.T, key, engineID, url string) {
		t.Helper()
		got, err := r.Idempotency(t.Context(), p.ProductID, key)
		if engineID == "" {
			wantErr(t, err, ErrNotFound)
			return
		}
		if err != nil || got.EngineID != engineID || got.URL != url || got.Body != "body" {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	t.Run("Answered", func(t *testing.T) {
		e := begin(t, "answered")
		key := e.Idempotency.Key
		want(t, key, e.EngineID, "")
		e.Op.Step = "boot"
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		want(t, key, e.EngineID, "")
		e.State, e.Op, e.URL = engine.Running, nil, "http://engine"
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		want(t, key, e.EngineID, "http://engine")
		// A later operation does not change it.
		e.State = engine.Failed
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		want(t, key, e.EngineID, "http://engine")
	})
	t.Run("ErrorsAreNotKept", func(t *testing.T) {
		e := begin(t, "failed")
		key := e.Idempotency.Key
		e.Op.Undo = "BOOT_TIMEOUT"
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		want(t, key, "", "")
	})
	t.Run("CutShortByADestroy", func(t *testing.T) {
		e := begin(t, "destroyed")
		key := e.Idempotency.Key
		e.State = engine.Destroying
		if err := r.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if err := r.Remove(t.Context(), e, false); err != nil {
			t.Fatal(err)
		}
		want(t, key, "", "")
	})
	t.Run("AnotherIdentity", func(t *testing.T) {
		e := begin(t, "moved")
		old := e.EngineID
		e.EngineID = newName()
		if err := r.Reidentify(t.Context(), old, e, nil); err != nil {
			t.Fatal(err)
		}
		want(t, e.Idempotency.Key, e.EngineID, "")
	})
	t.Run("ErrKeyUsed", func(t *testing.T) {
		e := begin(t, "first")
		other := newEngine(p, "second")
		other.Idempotency = &engine.IdempotencyRef{Key: e.Idempotency.Key, Body: "another"}
		wantErr(t, r.Claim(t.Context(), p, other, nil), ErrKeyUsed)
		if _, err := r.Engine(t.Context(), p.ProductID, "second"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a row was created: %v", err)
		}
	})
	t.Run("OnlyOneOfManyIsFirst", func(t *testing.T) {
		key, made := newName(), 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				e := newEngine(p, fmt.Sprint("racer-", i))
				e.Idempotency = &engine.IdempotencyRef{Key: key, Body: "body", CreatedAt: time.Now().UTC()}
				err := r.Claim(t.Context(), p, e, nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					made++
				} else if !errors.Is(err, ErrKeyUsed) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if made != 1 {
			t.Errorf("%d claims with one key", made)
		}
	})
	t.Run("Expired", func(t *testing.T) {
		e := begin(t, "expired")
		record, err := r.Idempotency(t.Context(), p.ProductID, e.Idempotency.Key)
		if err != nil {
			t.Fatal(err)
		}
		if record.Expired(record.CreatedAt.Add(idempotencyTTL)) || !record.Expired(record.CreatedAt.Add(idempotencyTTL+time.Second)) {
			t.Error("the record does not expire after its time")
		}
		next := newEngine(p, "next")
		next.Idempotency = &engine.IdempotencyRef{Key: record.Key, Body: "body", CreatedAt: time.Now().UTC(), Expired: record.Index}
		if err := r.Claim(t.Context(), p, next, nil); err != nil {
			t.Fatal(err)
		}
		want(t, record.Key, next.EngineID, "")
		if n, err := r.SweepIdempotency(t.Context(), time.Now()); err != nil || n != 0 {
			t.Errorf("swept %d, %v", n, err)
		}
		if n, err := r.SweepIdempotency(t.Context(), time.Now().Add(2*idempotencyTTL)); err != nil || n == 0 {
			t.Errorf("swept %d, %v", n, err)
		}
		want(t, record.Key, "", "")
	})
}
