package secrets

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/hashicorp/go-envparse"
	"pgregory.net/rapid"
)

// FuzzCheckEnv: accepted values come out of Nomad's parser unchanged, beside another key,
// and no error contains a value.
func FuzzCheckEnv(f *testing.F) {
	for _, value := range []string{
		"", " blanks ", "sk-1", "a\nb\r\n", `"`, `'`, `\`, "$HOME ${PATH} {{ env }}", "# not a comment", "a\x00b", "\xff\xfe", "\u2028\u2029\ufffd", "\U0001F600",
		"\x7f\x1b[0m", "<&>", "\ufeff", strings.Repeat("x", 66_000), strings.Repeat("<", 11_000), `\u0041`, "a=b", "export A=b",
	} {
		f.Add("LLM_API_KEY", value)
	}
	f.Add("export", "x")
	f.Add("export A", "x")
	f.Add("A ", "")
	f.Add("#", "x")
	f.Add("A\nB", "x")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, name, value string) {
		checkRoundTrip(t, map[string]string{name: value, "OTHER": "other"})
	})
}

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

func checkRoundTrip(t failer, env map[string]string) {
	t.Helper()
	if err := CheckEnv(env); err != nil {
		for _, value := range env {
			if len(value) > 20 && strings.Contains(err.Error(), value) {
				t.Fatalf("the error holds a value")
			}
		}
		return
	}
	var file []byte
	for name, value := range env {
		if strings.Contains(value, "\x00") || strings.ContainsAny(name, "./") {
			t.Fatalf("%q is accepted", name)
		}
		file = append(file, envLine(name, value)...)
	}
	got, err := envparse.Parse(bytes.NewReader(file))
	if err != nil || !maps.Equal(got, env) {
		t.Fatalf("accepted, but Nomad reads %d of %d variables, %v", len(got), len(env), err)
	}
}

// TestCheckEnvProperty checks random environments.
func TestCheckEnvProperty(t *testing.T) {
	name := rapid.OneOf(rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,8}`), rapid.String())
	value := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		rapid.Map(rapid.IntRange(65_500, 65_540), func(n int) string { return strings.Repeat("x", n) }))
	rapid.Check(t, func(t *rapid.T) { checkRoundTrip(t, rapid.MapOfN(name, value, 0, 6).Draw(t, "env")) })
}

func TestCheckEnvLimit(t *testing.T) {
	most := strings.Repeat("x", maxEnvLine-len(`K=""`))
	if err := CheckEnv(map[string]string{"K": most}); err != nil {
		t.Errorf("the longest value is refused: %v", err)
	}
	if err := CheckEnv(map[string]string{"K": most + "x"}); err == nil || !strings.HasPrefix(err.Error(), "K: ") {
		t.Errorf("one byte more: %v", err)
	}
	// The parser really has this limit.
	_, err := envparse.Parse(bytes.NewReader(envLine("K", most+"x")))
	if parse := new(envparse.ParseError); !errors.As(err, &parse) || !errors.Is(parse.Err, bufio.ErrTooLong) {
		t.Errorf("Nomad's parser returns %v", err)
	}
}
