package audit

import (
	"errors"
	"testing"
	"time"
)

// A cursor is valid only for the list that returned it.
func TestCursorBelongsToItsList(t *testing.T) {
	at := position{time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC), 7}
	cursor := at.cursor("p")
	if got, err := parseCursor("p", cursor); err != nil || got != at {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, bad := range map[string][2]string{
		"another product's": {"q", cursor}, "the admin's": {"", cursor}, "cut": {"p", cursor[:len(cursor)-1]}, "longer": {"p", cursor + "A"}, "empty": {"p", ""},
	} {
		if _, err := parseCursor(bad[0], bad[1]); !errors.Is(err, ErrCursor) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCursor: an accepted cursor is exactly the one that this list returns for that
// position.
func FuzzCursor(f *testing.F) {
	f.Add("p", position{time.Unix(1, 2000), 3}.cursor("p"))
	f.Add("p", position{time.Unix(1, 2000), 3}.cursor("q"))
	f.Add("", "AAAA")
	f.Fuzz(func(t *testing.T, product, cursor string) {
		at, err := parseCursor(product, cursor)
		if err != nil {
			if !errors.Is(err, ErrCursor) {
				t.Fatal(err)
			}
			return
		}
		if again := at.cursor(product); again != cursor {
			t.Fatalf("%q is accepted, and the cursor of its position is %q", cursor, again)
		}
	})
}
