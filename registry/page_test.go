package registry

import (
	"errors"
	"testing"
	"time"

	"github.com/septemberai/orch/engine"
)

// A cursor is valid only for the list that returned it.
func TestCursorBelongsToItsList(t *testing.T) {
	e := &engine.Row{EngineID: "e", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)}
	cursor := cursorAfter("p", e)
	if got, err := parseCursor("p", cursor); err != nil || got.EngineID != e.EngineID || !got.CreatedAt.Equal(e.CreatedAt) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, bad := range map[string][2]string{
		"another product's": {"q", cursor}, "cut": {"p", cursor[:len(cursor)-1]}, "longer": {"p", cursor + "A"}, "empty": {"p", ""}, "padded": {"p", cursor + "="},
	} {
		if _, err := parseCursor(bad[0], bad[1]); !errors.Is(err, ErrCursor) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCursor: an accepted cursor is exactly the one that this list returns for that place.
func FuzzCursor(f *testing.F) {
	f.Add("p", cursorAfter("p", &engine.Row{EngineID: "e", CreatedAt: time.Unix(1, 2)}))
	f.Add("p", cursorAfter("q", &engine.Row{}))
	f.Add("", "")
	f.Add("p", "AAAA")
	f.Fuzz(func(t *testing.T, product, cursor string) {
		e, err := parseCursor(product, cursor)
		if err != nil {
			if !errors.Is(err, ErrCursor) {
				t.Fatal(err)
			}
			return
		}
		if again := cursorAfter(product, e); again != cursor {
			t.Fatalf("%q is accepted, but the cursor of its place is %q", cursor, again)
		}
	})
}
