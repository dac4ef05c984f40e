package engine

import (
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestCheckUserID(t *testing.T) {
	for name, id := range map[string]string{
		"OK": "user-1", "OKOneByte": "x", "OKLongest": strings.Repeat("x", 256), "OKLongestInRunes": strings.Repeat("ü", 128),
		"OKMail": "user+tag@example.com", "OKAuth0": "auth0|123", "OKSlashes": "a/b//c/", "OKSpaces": " a b ",
		"OKProvision": "provision", "OKDots": "...", "OKDotInSegment": "a/.b/c./..d", "OKEmoji": "\U0001F468\u200d\U0001F469\u200d\U0001F467", "OKInterpolation": "${node.unique.id}",
	} {
		t.Run(name, func(t *testing.T) {
			if err := CheckUserID(id); err != nil {
				t.Fatalf("%q: %v", id, err)
			}
		})
	}
	const dots = `user_id has a segment "." or ".." between slashes, which clients and proxies remove from paths`
	for name, tt := range map[string]struct{ id, want string }{
		"ErrEmpty":      {"", "user_id is empty"},
		"ErrTooLong":    {strings.Repeat("x", 257), "user_id is 257 bytes long; the maximum is 256"},
		"ErrTooWide":    {strings.Repeat("ü", 129), "user_id is 258 bytes long; the maximum is 256"},
		"ErrUTF8":       {"a\xffb", "user_id is not valid UTF-8"},
		"ErrNull":       {"a\x00b", "user_id contains a control character"},
		"ErrNewline":    {"a\nb", "user_id contains a control character"},
		"ErrTab":        {"a\tb", "user_id contains a control character"},
		"ErrDelete":     {"a\x7fb", "user_id contains a control character"},
		"ErrC1":         {"a\u0085b", "user_id contains a control character"},
		"ErrCarriage":   {"\r", "user_id contains a control character"},
		"ErrDot":        {".", dots},
		"ErrDots":       {"..", dots},
		"ErrDotFirst":   {"./a", dots},
		"ErrDotsInside": {"x/../victim", dots},
		"ErrDotLast":    {"a//.", dots},
	} {
		t.Run(name, func(t *testing.T) {
			got := "nil"
			if err := CheckUserID(tt.id); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("%q (-want +got):\n%s", tt.id, diff)
			}
		})
	}
}

func FuzzCheckUserID(f *testing.F) {
	f.Add("user-1")
	f.Add("\xff")
	f.Add("a\u009fb")
	f.Add("a/../b")
	f.Add("./.")
	dots := regexp.MustCompile(`(^|/)\.\.?(/|$)`)
	f.Fuzz(func(t *testing.T, id string) {
		want := len(id) >= 1 && len(id) <= 256 && utf8.ValidString(id) && !dots.MatchString(id)
		for _, r := range id {
			want = want && !unicode.In(r, unicode.Cc)
		}
		if err := CheckUserID(id); (err == nil) != want {
			t.Fatalf("%q: %v, want allowed %v", id, err, want)
		}
	})
}
