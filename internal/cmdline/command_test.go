package cmdline

import (
	"context"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]struct {
		args []string
		yes  bool
		name string
	}{
		"":                    {nil, false, ""},
		"a":                   {[]string{"a"}, false, ""},
		"-yes a":              {[]string{"a"}, true, ""},
		"a -yes":              {[]string{"a"}, true, ""},
		"a -yes b":            {[]string{"a", "b"}, true, ""},
		"a --name n -yes b":   {[]string{"a", "b"}, true, "n"},
		"-name=n a":           {[]string{"a"}, false, "n"},
		"-- -yes":             {[]string{"-yes"}, false, ""},
		"a -- -yes b":         {[]string{"a", "-yes", "b"}, false, ""},
		"-yes -- a -- -name":  {[]string{"a", "--", "-name"}, true, ""},
		"a -name n -- -name2": {[]string{"a", "-name2"}, false, "n"},
	} {
		f := flag.NewFlagSet("", flag.ContinueOnError)
		yes, name := f.Bool("yes", false, ""), f.String("name", "", "")
		var got []string
		if err := parse(f, strings.Fields(line), &got); err != nil || !slices.Equal(got, want.args) || *yes != want.yes || *name != want.name {
			t.Errorf("%q: got %q, yes %t, name %q, %v", line, got, *yes, *name, err)
		}
	}
}

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]error{
		"y\n": nil, "yes\n": nil, " YES \n": nil, "y": nil, "n\n": ErrReported, "\n": ErrReported, "": ErrReported, "yess\n": ErrReported, "no\nyes\n": ErrReported,
	} {
		w := newWorld(answer)
		w.InTTY = true
		if err := w.confirm("Destroy \x1b[31mit?"); !errors.Is(err, want) {
			t.Errorf("%q: got %v", answer, err)
		}
		if got := w.err.String(); !strings.HasPrefix(got, "Destroy \uFFFD[31mit? [y/N] ") || (want != nil) != strings.Contains(got, "Nothing was done") {
			t.Errorf("%q: stderr %q", answer, got)
		}
	}
}

// program returns a program with one command, in a group, that ends with err.
func program(ran *[]string, err error, change func(*Command)) *Program {
	return &Program{Name: "prog", Groups: []Group{{"group", "Do things"}}, Commands: []func(*Env) *Command{func(*Env) *Command {
		c := &Command{
			Name: "group do", Args: []string{"first", "[second]"}, Synopsis: "Do it", About: "Do it.", Examples: []string{"prog group do a"},
			Run: func(_ context.Context, c *Call) error { *ran = c.Args; return err },
		}
		if change != nil {
			change(c)
		}
		return c
	}}}
}

func TestRun(t *testing.T) {
	failed := errors.New("it fai\x1bled")
	for name, c := range map[string]struct {
		args   string
		err    error
		change func(*Command)
		code   int
		stderr string
		ran    []string
	}{
		"done":                {"group do a", nil, nil, 0, "", []string{"a"}},
		"both arguments":      {"group do a b", nil, nil, 0, "", []string{"a", "b"}},
		"too few":             {"group do", nil, nil, 2, "got 0 arguments, need 1 or 2\n\nUsage: prog group do <first> [second]", nil},
		"too many":            {"group do a b c", nil, nil, 2, "got 3 arguments", nil},
		"an unknown flag":     {"group do -x a", nil, nil, 2, "not defined: -x", nil},
		"an unknown command":  {"group undo", nil, nil, 2, `there is no command "undo"`, nil},
		"an unknown name":     {"grup do a", nil, nil, 2, `prog: there is no command "grup"`, nil},
		"no command":          {"group", nil, nil, 2, "Usage: prog group <command>", nil},
		"failed":              {"group do a", failed, nil, 1, "prog group do: it fai\uFFFDled\n", []string{"a"}},
		"reported":            {"group do a", ErrReported, nil, 1, "", []string{"a"}},
		"a code of its own":   {"group do a", WithCode(7, failed), nil, 7, "it fai", []string{"a"}},
		"configured wrongly":  {"group do a", ConfiguredWrongly(errors.Join(failed, failed)), nil, 2, "\n  - it fai\uFFFDled\n  - it fai", []string{"a"}},
		"not confirmed":       {"group do a", nil, func(c *Command) { c.Ask = func([]string) string { return "Do it?" } }, 2, "give -yes", nil},
		"confirmed by a flag": {"group do a -yes", nil, func(c *Command) { c.Ask = func([]string) string { return "Do it?" } }, 0, "", []string{"a"}},
		"not prepared":        {"group do a", nil, func(c *Command) { c.Prepare = func(*Call) error { return Wrong("no key") } }, 2, "no key", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld("")
			var ran []string
			code := program(&ran, c.err, c.change).Run(&w.Env, strings.Fields(c.args))
			if code != c.code || !strings.Contains(w.err.String(), c.stderr) || c.stderr == "" && w.err.Len() > 0 || !slices.Equal(ran, c.ran) {
				t.Errorf("exit code %d, stderr %q, ran with %q", code, w.err.String(), ran)
			}
		})
	}
}

// TestNotPreparedNotAsked: a call with invalid arguments asks nothing.
func TestNotPreparedNotAsked(t *testing.T) {
	w := newWorld("yes\n")
	w.InTTY = true
	var ran []string
	code := program(&ran, nil, func(c *Command) {
		c.Ask = func([]string) string { return "Do it?" }
		c.Prepare = func(*Call) error { return Wrong("no key") }
	}).Run(&w.Env, []string{"group", "do", "a"})
	if code != 2 || strings.Contains(w.err.String(), "Do it?") {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
}

func TestHelp(t *testing.T) {
	p := program(new([]string), nil, func(c *Command) {
		c.Codes, c.JSON = "7 it rained", true
		c.More = func() string { return "And more." }
	})
	w := newWorld("")
	if code := p.Run(&w.Env, []string{"group", "do", "-help"}); code != 0 || w.err.Len() > 0 {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
	want := `Usage: prog group do [options] <first> [second]

  Do it.

Options:
  -json  print JSON for scripts

Examples:
  prog group do a

Exit codes: 0 done, 1 failed, 2 invalid arguments: nothing was done, 130 interrupted (Ctrl-C), 7 it rained.

And more.
`
	if got := w.out.String(); got != want {
		t.Errorf("help is\n%s", got)
	}
	reference := p.Reference()
	for _, wanted := range []string{"\n## prog group\nDo things.\n", "\n### prog group do\nDo it.\n", "7 it rained.\n```\n", "\n### prog version\n"} {
		if !strings.Contains(reference, wanted) {
			t.Errorf("%q is not in the reference", wanted)
		}
	}
	if strings.Contains(reference, "And more") {
		t.Error("the reference repeats what is for the help alone")
	}
}
