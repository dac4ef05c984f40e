package remote

import (
	"bytes"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an environment without a service.
type world struct {
	Env
	out, err bytes.Buffer
	vars     map[string]string
}

func newWorld(input string) *world {
	w := &world{vars: map[string]string{urlVar: "http://127.0.0.1:1", platformVar: "pk", adminVar: "ak"}}
	w.Env = Env{In: strings.NewReader(input), Out: &w.out, Err: &w.err, Getenv: func(name string) string { return w.vars[name] }}
	return w
}

// run calls a command by its name.
func (w *world) run(t *testing.T, name string, args ...string) int {
	t.Helper()
	build := Commands(&w.Env, nil)[name]
	if build == nil {
		t.Fatalf("there is no command %q", name)
	}
	c, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return c.Run(args)
}

// TestEveryCommand: help names how it is called, its flags and an example.
func TestEveryCommand(t *testing.T) {
	for name, build := range Commands(OS(), nil) {
		c, err := build()
		if err != nil {
			t.Fatal(err)
		}
		if s := c.Synopsis(); s == "" || strings.HasSuffix(s, ".") {
			t.Errorf("%s: synopsis %q", name, s)
		}
		help := c.Help()
		if !strings.HasPrefix(help, "Usage: orch "+name) {
			t.Errorf("%s: help begins %q", name, help[:min(len(help), 40)])
		}
		command, ok := c.(*command)
		if !ok {
			continue
		}
		if !strings.Contains(help, "Examples:\n  ") || !strings.Contains(help, "orch "+name) {
			t.Errorf("%s: no example", name)
		}
		f, _ := command.flagSet()
		f.VisitAll(func(f *flag.Flag) {
			if f.Usage == "" || !strings.Contains(help, "-"+f.Name) {
				t.Errorf("%s: -%s is not explained", name, f.Name)
			}
			if l := strings.ToLower(f.Name); strings.HasSuffix(l, "key") && l != "key" && l != "idempotency-key" {
				t.Errorf("%s: -%s takes a key on the command line", name, f.Name)
			}
		})
		if !strings.Contains(name, "engine d") && !strings.Contains(name, "product d") && command.ask != nil {
			t.Errorf("%s asks", name)
		}
		for flag := range command.predict {
			if flag != "" && f.Lookup(flag) == nil {
				t.Errorf("%s: completes -%s, which it does not have", name, flag)
			}
		}
	}
}

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

// TestCalledWrongly: exit code 2, and nobody is called: nothing listens there.
func TestCalledWrongly(t *testing.T) {
	for line, want := range map[string]string{
		"engine show":                              "0 arguments are given, 1 wanted",
		"engine show|a|b":                          "2 arguments are given, 1 wanted",
		"engine show|":                             "user_id is empty",
		"engine show|-no-such-flag|a":              "no-such-flag",
		"engine list|-status|dead":                 "provisioning, running",
		"engine list|-n|-1":                        "-n must be",
		"engine list|-timeout|soon":                "invalid value",
		"engine keep-awake|-for|2h|a":              "from 1s to 1h0m0s",
		"engine keep-awake|-for|0s|a":              "from 1s to 1h0m0s",
		"engine destroy|a":                         "say -yes",
		"product delete|a":                         "say -yes",
		"product rotate-key|-overlap|25h|a":        "-overlap must be",
		"product register|-set|max_engines|a":      "field=value",
		"product register|-set|max_engine=1|a":     "max_engines, rate_limit_rpm",
		"product policy|-set|max_engines=x|a":      "not a whole number",
		"product policy|-policy|/no/such|a":        "no such file",
		"product policy|-policy|-|a":               "EOF",
		"audit tail|-since|yesterday":              "-since must be",
		"audit tail|-action|dance":                 "-action must be one of",
		"audit tail|-n|-1":                         "-n must be",
		"completion|fish":                          "bash or zsh",
		"engine|shwo":                              `no command "shwo"`,
		"registry|stat":                            `no command "stat"`,
		"engine show|a|-key=\x1b[31m":              "invalid boolean",
		"engine provision|-engine-version=x|-json": "0 arguments",
	} {
		w := newWorld("")
		name, rest, _ := strings.Cut(line, "|")
		var args []string
		if strings.Contains(line, "|") {
			args = strings.Split(rest, "|")
		}
		code := w.run(t, name, args...)
		if got := w.err.String(); code != exitWrong || w.out.Len() > 0 || !strings.Contains(got, want) || !strings.Contains(got, "Usage: orch") || strings.Contains(got, "\x1b") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", line, code, w.out.String(), got)
		}
	}
}

// TestEnvironment: which variables are needed, and that no key shows.
func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		name string
		vars map[string]string
		call []string
		want string
	}{
		{"ErrPlatformKey", map[string]string{adminVar: "ak"}, []string{"engine list"}, platformVar},
		{"ErrAdminKey", map[string]string{platformVar: "pk"}, []string{"product list"}, adminVar},
		{"ErrEither", nil, []string{"status"}, "neither"},
		{"ErrProductOfOthers", map[string]string{platformVar: "pk"}, []string{"audit tail", "-product", "p"}, "for the admin"},
		{"ErrURL", map[string]string{platformVar: "pk", urlVar: "localhost:8000"}, []string{"status"}, urlVar},
		{"ErrScheme", map[string]string{platformVar: "pk", urlVar: "ftp://h"}, []string{"status"}, urlVar},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld("")
			w.vars = c.vars
			if code := w.run(t, c.call[0], c.call[1:]...); code != exitWrong || !strings.Contains(w.err.String(), c.want) {
				t.Errorf("exit code %d, stderr %q", code, w.err.String())
			}
		})
	}
	t.Run("OK", func(t *testing.T) {
		for n, want := range map[need][2]string{needsPlatformKey: {"pk", ""}, needsAdminKey: {"", "ak"}, needsEither: {"pk", "ak"}} {
			c, err := newWorld("").client(n)
			if err != nil || c.PlatformKey != want[0] || c.AdminKey != want[1] {
				t.Errorf("%v: %+v, %v", n, c, err)
			}
		}
		w := newWorld("")
		delete(w.vars, urlVar)
		if c, err := w.client(needsEither); err != nil || c.BaseURL != defaultURL {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("ErrRefused", func(t *testing.T) {
		w := newWorld("")
		w.vars = map[string]string{urlVar: "http://127.0.0.1:1", platformVar: "a-secret-key"}
		code := w.run(t, "status")
		if got := w.err.String(); code != exitFailed || !strings.Contains(got, "Is the service running?") || strings.Contains(got, "a-secret-key") {
			t.Errorf("exit code %d, stderr %q", code, got)
		}
	})
	t.Run("ErrKeyThatIsNoHeader", func(t *testing.T) {
		w := newWorld("")
		w.vars[platformVar] = "a-secret\nkey"
		if code := w.run(t, "status"); code != exitFailed || strings.Contains(w.err.String(), "a-secret") {
			t.Errorf("exit code %d, stderr %q", code, w.err.String())
		}
	})
}

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]error{
		"y\n": nil, "yes\n": nil, " YES \n": nil, "y": nil, "n\n": errNo, "\n": errNo, "": errNo, "yess\n": errNo, "no\nyes\n": errNo,
	} {
		w := newWorld(answer)
		w.InTTY = true
		if err := w.confirm("Destroy \x1b[31mit?"); !errors.Is(err, want) {
			t.Errorf("%q: got %v", answer, err)
		}
		if got := w.err.String(); !strings.HasPrefix(got, "Destroy \uFFFD[31mit? [y/N] ") || (want == errNo) != strings.Contains(got, "Nothing was done") {
			t.Errorf("%q: stderr %q", answer, got)
		}
	}
	w := newWorld("n\n")
	w.InTTY = true
	if code := w.run(t, "engine destroy", "alice"); code != exitFailed || !strings.Contains(w.err.String(), "engine of alice") {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
}
