package secrets

import (
	"fmt"
	"testing"
)

// TestBrainKey: no key is made in the place of one that can be brought back, and one that was
// destroyed is replaced.
func TestBrainKey(t *testing.T) {
	v := keys(t)
	ctx := t.Context()
	ensure := func(id string, want bool) *BrainKey {
		t.Helper()
		k, made, err := v.EnsureBrainKey(ctx, ownerOf(id))
		if err != nil || made != want {
			t.Fatalf("made %v, %v, want %v", made, err, want)
		}
		return k
	}
	deleted := func(id string) {
		t.Helper()
		_, err := v.BrainKey(ctx, id)
		wantErr(t, err, ErrDeleted)
		_, _, err = v.EnsureBrainKey(ctx, ownerOf(id))
		wantErr(t, err, ErrDeleted)
	}
	for i, c := range []struct {
		name       string
		hide, back func(path string) error
	}{
		{"Deleted", func(path string) error { return v.kv.Delete(ctx, path) }, func(path string) error { return v.kv.Undelete(ctx, path, []int{1}) }},
		{"Overwritten", func(path string) error {
			_, err := v.kv.Put(ctx, path, map[string]any{"a": "b"})
			return err
		}, func(path string) error {
			_, err := v.kv.Rollback(ctx, path, 1)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := fmt.Sprintf("brain%d", i)
			k := ensure(id, true)
			if err := c.hide(brainPath(id)); err != nil {
				t.Fatal(err)
			}
			deleted(id)
			if err := c.back(brainPath(id)); err != nil {
				t.Fatal(err)
			}
			if got := ensure(id, false); *got != *k {
				t.Errorf("got %v, want the key of before, %v", got.Recipient, k.Recipient)
			}
			if err := c.hide(brainPath(id)); err != nil {
				t.Fatal(err)
			}
			if err := v.DestroyBrainKey(ctx, id); err != nil {
				t.Fatal(err)
			}
			_, err := v.BrainKey(ctx, id)
			wantErr(t, err, ErrNotFound)
		})
	}
	t.Run("Destroyed", func(t *testing.T) {
		k := ensure("brain-destroyed", true)
		if err := v.kv.Destroy(ctx, brainPath("brain-destroyed"), []int{1}); err != nil {
			t.Fatal(err)
		}
		_, err := v.BrainKey(ctx, "brain-destroyed")
		wantErr(t, err, ErrNotFound)
		if got := ensure("brain-destroyed", true); got.Recipient == k.Recipient {
			t.Error("the destroyed key is used")
		}
	})
}
