package jobs

import (
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// syntax generates strings of characters with a meaning in HCL, templates or Markdown.
var syntax = rapid.StringOfN(rapid.SampledFrom([]rune("$%{}[]()\"'`\\<>*_#!|~&@:/?=+-. aé🦊")), 1, -1, 256)

// anyUser generates user_ids that docs/api.md allows: up to 256 bytes of UTF-8 without
// control characters, many of which look like syntax.
var anyUser = rapid.OneOf(
	syntax,
	rapid.SampledFrom([]string{
		"${node.unique.id}", `${env["HOME"]}`, "${NOMAD_SECRETS_DIR}", "$${x}", "%{if true}x%{endif}", `{{ env "HOME" }}`, `{{ with nomadVar "x" }}`,
		`{{ key "x" }}`, "<script>", "[x](javascript:a)", "__proto__", "null", strings.Repeat("$", 256), strings.Repeat("🦊", 64), strings.Repeat("é", 128), strings.Repeat(`"`, 256),
	}),
	rapid.StringN(1, -1, 256),
).Filter(func(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
})

// TestQuoteForUI: the result is one code span of Markdown, in which nothing has a meaning, and
// can be read back as the string or its beginning.
func TestQuoteForUI(t *testing.T) {
	for s, want := range map[string]string{
		"für": "`\"für\"`", "日本🦊": "`\"日本🦊\"`", "a\u202eb": "`\"a\\u202eb\"`", "a@example.com https://b": "`\"a@example.com https://b\"`",
		"a`b": "`\"a\\x60b\"`",
	} {
		if got := quoteForUI(s); got != want {
			t.Errorf("%q is shown as %s, want %s", s, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := anyUser.Draw(t, "s")
		q := quoteForUI(s)
		whole, isCut := strings.CutSuffix(q, "...")
		span := strings.TrimSuffix(strings.TrimPrefix(whole, "`"), "`")
		back, err := strconv.Unquote(span)
		if err != nil || len(span) != len(whole)-2 || !isCut && back != s || !strings.HasPrefix(s, back) {
			t.Fatalf("%q is shown as %s, which reads %q, %v", s, q, back, err)
		}
		if isCut != (len(back) < len(s)) || len(q) > maxShown || isCut && len(q) < maxShown-20 {
			t.Fatalf("%q is shown as %s, %d bytes, cut: %t", s, q, len(q), isCut)
		}
		for _, c := range span {
			if !strconv.IsPrint(c) || strings.ContainsRune("`<>$", c) {
				t.Fatalf("%q is shown as %s", s, q)
			}
		}
	})
}
