package registry

import (
	"errors"
	"fmt"
	"testing"

	"github.com/septemberai/orch/engine"
)

// Every list reports an unreadable row, and only writes that know its index can overwrite
// it.
func TestUnreadableRow(t *testing.T) {
	for name, value := range map[string]string{
		"ErrTruncated": `{"trunc`, "ErrEmptyObject": `{}`, "ErrNewerState": "newer",
	} {
		t.Run(name, func(t *testing.T) {
			r := lead(t, prefix(t))
			m := mirrorOf(t, r.Store)
			p := r.product(t, nil)
			e, other := r.claim(t, p, "user"), r.claim(t, p, "other")
			newer := value == "newer"
			if newer {
				next := e.Clone()
				next.State = "hibernating"
				value = string(encode(next))
			}
			key := "engines/" + rowName(p.ProductID, "user")
			r.put(t, key, []byte(value))
			rows, unreadable, err := r.Engines(t.Context())
			if err != nil || len(rows) != 1 || rows[0].EngineID != other.EngineID || len(unreadable) != 1 {
				t.Fatalf("%d rows, beside %v, %v", len(rows), unreadable, err)
			}
			u := unreadable[0]
			if u.ProductID != p.ProductID || u.UserID != "user" || u.Newer != newer {
				t.Errorf("unreadable is %+v", u)
			}
			if _, err = r.Engine(t.Context(), p.ProductID, "user"); asUnreadable(err) == nil {
				t.Errorf("the row reads as %v", err)
			}
			if _, _, err = r.Lookup(t.Context(), p.PlatformKeyHash, p.ProductID, "user"); asUnreadable(err) == nil {
				t.Errorf("a lookup returns %v", err)
			}
			if held, err := r.Held(t.Context(), e.EngineID); err != nil || !held {
				t.Errorf("its engine is held: %v, %v", held, err)
			}
			if err := r.Announce(t.Context(), u.ProductID, u.UserID); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the view counts it and lists it no more", func() error {
				if n := m.Unreadable(p.ProductID); n != 1 || m.ByID(e.EngineID) != nil || m.ByID(other.EngineID) == nil {
					return fmt.Errorf("%d unreadable, %v", n, m.ByID(e.EngineID))
				}
				return nil
			})
			if m.Unreadable("") != 1 || m.Unreadable("another") != 0 {
				t.Errorf("%d in all, %d of another product", m.Unreadable(""), m.Unreadable("another"))
			}
			if name == "ErrEmptyObject" {
				if err := r.RemoveUnreadable(t.Context(), u); err != nil {
					t.Fatal(err)
				}
				r.wantQuota(t, p, 1)
				wantErr(t, r.RemoveUnreadable(t.Context(), u), ErrConflict)
			} else {
				next := e.Clone()
				next.State, next.Op, next.Index = engine.Failed, nil, u.Index
				if err := r.Correct(t.Context(), next, "", nil); err != nil {
					t.Fatal(err)
				}
				r.wantRow(t, next)
				r.wantQuota(t, p, 2)
			}
			eventually(t, "the view counts none", func() error {
				if n := m.Unreadable(""); n != 0 {
					return fmt.Errorf("%d unreadable", n)
				}
				return nil
			})
		})
	}
}

func TestTwins(t *testing.T) {
	r := lead(t, prefix(t))
	m := mirrorOf(t, r.Store)
	p := r.product(t, nil)
	e := r.claim(t, p, "user")
	twin := e.Clone()
	twin.UserID = "twin"
	r.put(t, "engines/"+rowName(p.ProductID, "twin"), encode(twin))
	if err := r.Announce(t.Context(), p.ProductID, "twin"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the view knows both", func() error {
		if got := m.Twins(e.EngineID); len(got) != 2 {
			return fmt.Errorf("%d twins", len(got))
		}
		return nil
	})
	row, err := r.Engine(t.Context(), p.ProductID, "twin")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.DropTwin(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if got := m.Twins(e.EngineID); len(got) != 0 || m.ByID(e.EngineID).UserID != "user" {
		t.Errorf("twins %v, by id %+v", got, m.ByID(e.EngineID))
	}
	if held, err := r.Held(t.Context(), e.EngineID); err != nil || !held {
		t.Errorf("the engine is held: %v, %v", held, err)
	}
}

// Missing or wrong indexes are corrected, unless their row has changed since it was read.
func TestIndexes(t *testing.T) {
	r := lead(t, prefix(t))
	p, other := r.product(t, nil), r.product(t, nil)
	e := r.claim(t, p, "user")
	faults := func() map[string]Fault {
		t.Helper()
		products, unreadable, err := r.Products(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, _, err := r.Engines(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		x, err := r.Indexes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]Fault{}
		for _, f := range x.Faults(products, unreadable, rows) {
			found[f.Index] = f
		}
		return found
	}
	if got := faults(); len(got) > 0 {
		t.Fatalf("in a sound registry: %+v", got)
	}
	for _, value := range []string{"", `{"trunc`, other.ProductID} {
		keys := []string{"slugs/" + p.Slug, "platform-keys/" + p.PlatformKeyHash, "engine-ids/" + e.EngineID}
		before := r.keys(t)
		for _, key := range keys {
			if value == "" {
				if _, err := r.client.KV().Delete(r.prefix+key, nil); err != nil {
					t.Fatal(err)
				}
				continue
			}
			r.put(t, key, []byte(value))
		}
		r.put(t, "slugs/nobodys", []byte("no-such-product"))
		got := faults()
		if len(got) != 4 {
			t.Fatalf("with %q: %+v", value, got)
		}
		for _, f := range got {
			if err := r.Mend(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		after := r.keys(t)
		for _, key := range keys {
			if after[key] != before[key] {
				t.Errorf("%s is %q, and was %q", key, after[key], before[key])
			}
		}
		if _, left := after["slugs/nobodys"]; left {
			t.Error("the slug of no product is left")
		}
	}
	r.put(t, "engine-ids/"+e.EngineID, []byte("nonsense"))
	f := faults()["engine-ids/"+e.EngineID]
	r.move(t, e, engine.Running)
	wantErr(t, r.Mend(t.Context(), f), ErrConflict)
	// An index whose row is gone has no effect.
	r.put(t, "engine-ids/stray", []byte("engines/"+rowName(p.ProductID, "nobody")))
	if held, err := r.Held(t.Context(), "stray"); err != nil || held {
		t.Errorf("an engine without a row is held: %v, %v", held, err)
	}
}

// An unreadable bucket, Idempotency-Key, rollout, backoff or flush counts as absent.
func TestUnreadableIsAsNone(t *testing.T) {
	r := lead(t, prefix(t))
	p := r.product(t, nil)
	const rubbish = `{"trunc`
	for _, key := range []string{"rate/" + p.ProductID, "idempotency/" + p.ProductID + "/k", "provider-keys", "warm-setbacks/f", "activity/x/0", "storm"} {
		r.put(t, key, []byte(rubbish))
	}
	if v, err := r.NewLimiter().Allow(t.Context(), p.ProductID, 60); err != nil || !v.Allowed {
		t.Errorf("the bucket: %+v, %v", v, err)
	}
	if n, err := r.SweepIdempotency(t.Context(), p.CreatedAt); err != nil || n != 1 {
		t.Errorf("swept %d, %v", n, err)
	}
	if ro, err := r.Rollout(t.Context()); err != nil || ro.TargetVersion != 0 || ro.Index == 0 {
		t.Errorf("the rollout: %+v, %v", ro, err)
	}
	b, err := r.WarmBackoffs(t.Context())
	if err != nil || b["f"] == nil || !b["f"].RetryAt.IsZero() {
		t.Fatalf("the backoffs: %+v, %v", b, err)
	}
	if err := r.DeleteWarmBackoff(t.Context(), b["f"]); err != nil {
		t.Error(err)
	}
	if _, err := r.Activity(t.Context()); err != nil {
		t.Errorf("the activity: %v", err)
	}
	if _, err := r.Storm(t.Context()); asUnreadable(err) == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("the storm: %v", err)
	}
}
