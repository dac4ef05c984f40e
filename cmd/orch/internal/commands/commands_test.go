package commands

import (
	"bytes"
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/cmdline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an environment without a terminal and with a separate configuration directory.
type world struct {
	cmdline.Env
	out, err bytes.Buffer
	vars     map[string]string
}

func newWorld(t *testing.T, input string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{vars: map[string]string{urlVar: "http://127.0.0.1:1", platformVar: "pk", adminVar: "ak"}}
	w.Env = cmdline.Env{
		In: strings.NewReader(input), Out: &w.out, Err: &w.err, Getenv: func(name string) string { return w.vars[name] },
		ConfigDir: func() (string, error) { return dir, nil },
	}
	return w
}

// run runs a command by its name.
func (w *world) run(name string, args ...string) int {
	return Program().Run(&w.Env, append(strings.Fields(name), args...))
}

// takeOut returns the output since its last call.
func (w *world) takeOut() string {
	defer w.out.Reset()
	return w.out.String()
}

// TestEveryCommand: it has a synopsis, an example, documented flags, and a group that lists
// it.
func TestEveryCommand(t *testing.T) {
	p, env := Program(), &newWorld(t, "").Env
	groups := map[string]string{}
	for _, g := range p.Groups {
		w := newWorld(t, "")
		if code := w.run(g.Name, "-help"); code != 0 {
			t.Errorf("%s -help: exit code %d, stderr %q", g.Name, code, w.err.String())
		}
		groups[g.Name] = w.out.String()
	}
	names := map[string]bool{}
	for _, build := range p.Commands {
		c := build(env)
		if names[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		names[c.Name] = true
		if c.Synopsis == "" || strings.HasSuffix(c.Synopsis, ".") || c.About == "" {
			t.Errorf("%s: synopsis %q, about %q", c.Name, c.Synopsis, c.About)
		}
		if !slices.ContainsFunc(c.Examples, func(e string) bool { return strings.Contains(e, "orch "+c.Name) }) {
			t.Errorf("%s: no example", c.Name)
		}
		if group, name, ok := strings.Cut(c.Name, " "); ok && !regexp.MustCompile(`(?m)^ +`+name+` +\S`).MatchString(groups[group]) {
			t.Errorf("%s is not listed by its group:\n%s", c.Name, groups[group])
		}
		f := flag.NewFlagSet("", flag.ContinueOnError)
		if c.Flags != nil {
			c.Flags(f)
		}
		f.VisitAll(func(f *flag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: -%s is not explained", c.Name, f.Name)
			}
			if l := strings.ToLower(f.Name); strings.HasSuffix(l, "key") && l != "key" && l != "idempotency-key" {
				t.Errorf("%s: -%s takes a key on the command line", c.Name, f.Name)
			}
		})
		last := c.Name[strings.LastIndex(c.Name, " ")+1:]
		if irreversible := slices.Contains([]string{"destroy", "delete", "discard", "forget", "remove", "restore"}, last); irreversible != (c.Ask != nil) {
			t.Errorf("%s: it needs a confirmation: %t", c.Name, c.Ask != nil)
		}
		for flag := range c.Predict {
			if flag != "" && f.Lookup(flag) == nil {
				t.Errorf("%s: completes -%s, which it does not have", c.Name, flag)
			}
		}
	}
}

func TestDocumentIsFresh(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(b), Document()); diff != "" {
		t.Errorf("docs/cli.md does not match the commands (-); run make docs:\n%s", diff)
	}
}

// TestCalledWrongly: exit code 2, and no service is called, because none is listening.
func TestCalledWrongly(t *testing.T) {
	for line, want := range map[string]string{
		"engine show":                              "got 0 arguments, need 1",
		"engine show|a|b":                          "got 2 arguments, need 1",
		"engine show|":                             "user_id is empty",
		"engine show|-no-such-flag|a":              "no-such-flag",
		"engine list|-status|dead":                 "provisioning, running",
		"engine list|-n|-1":                        "-n must be",
		"engine list|-timeout|soon":                "invalid value",
		"engine keep-awake|-for|2h|a":              "from 1s to 1h0m0s",
		"engine keep-awake|-for|0s|a":              "from 1s to 1h0m0s",
		"engine destroy|a":                         "give -yes",
		"product delete|a":                         "give -yes",
		"snapshot delete|a|s":                      "give -yes",
		"snapshot delete|a":                        "got 1 argument, need 2",
		"snapshot list|-n|-1|a":                    "-n must be",
		"snapshot import|-parallel|0":              "-parallel must be",
		"snapshot import|x":                        "got 1 argument, need 0",
		"engine restore|a":                         "give -yes",
		"engine fork|a":                            "got 1 argument, need 2",
		"engine discard|e":                         "give -yes",
		"volume forget|e":                          "give -yes",
		"volume forget":                            "got 0 arguments, need 1",
		"engine adopt|e|-product|p":                "or neither",
		"engine adopt|-user|u|e":                   "or neither",
		"node adopt|a":                             "got 1 argument, need 2",
		"node evacuate|-status|-cancel|a":          "exclude each other",
		"reconcile|x":                              "got 1 argument, need 0",
		"provider-keys apply|x":                    "got 1 argument",
		"engine wait|-for|dead|a":                  "-for must be one of",
		"engine watch|a|b":                         "got 2 arguments, need 0 or 1",
		"product show":                             "name the product",
		"engine list|-context|nowhere":             "there is no context",
		"context use|nowhere":                      "there is no context",
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
		w := newWorld(t, "")
		name, rest, _ := strings.Cut(line, "|")
		var args []string
		if strings.Contains(line, "|") {
			args = strings.Split(rest, "|")
		}
		code := w.run(name, args...)
		if got := w.err.String(); code != 2 || w.out.Len() > 0 || !strings.Contains(got, want) || !strings.Contains(got, "Usage: orch") || strings.Contains(got, "\x1b") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", line, code, w.out.String(), got)
		}
	}
}

// TestEnvironment: which variables are needed, and that no key is shown.
func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		name string
		vars map[string]string
		call []string
		want string
	}{
		{"ErrPlatformKey", map[string]string{adminVar: "ak"}, []string{"engine show", "a"}, platformVar},
		{"ErrNodeOfProduct", map[string]string{platformVar: "pk"}, []string{"engine list", "-node", "n"}, adminVar},
		{"ErrProductOfProduct", map[string]string{platformVar: "pk"}, []string{"engine list", "-product", "p"}, adminVar},
		{"ErrListAsAdmin", map[string]string{platformVar: "pk"}, []string{"engine list", "-admin"}, adminVar},
		{"ErrAdminKey", map[string]string{platformVar: "pk"}, []string{"product list"}, adminVar},
		{"ErrEither", nil, []string{"status"}, "neither"},
		{"ErrAsAdmin", map[string]string{platformVar: "pk"}, []string{"status", "-admin"}, adminVar},
		{"ErrProductOfOthers", map[string]string{platformVar: "pk"}, []string{"audit tail", "-product", "p"}, "for the admin"},
		{"ErrURL", map[string]string{platformVar: "pk", urlVar: "localhost:8000"}, []string{"status"}, urlVar},
		{"ErrScheme", map[string]string{platformVar: "pk", urlVar: "ftp://h"}, []string{"status"}, urlVar},
		{"ErrAddress", map[string]string{platformVar: "pk"}, []string{"status", "-address", "h"}, "-address"},
		{"ErrPassword", map[string]string{platformVar: "pk"}, []string{"status", "-address", "http://u:secret@h"}, "password"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "")
			w.vars = c.vars
			if code := w.run(c.call[0], c.call[1:]...); code != 2 || !strings.Contains(w.err.String(), c.want) || strings.Contains(w.err.String(), "secret") {
				t.Errorf("exit code %d, stderr %q", code, w.err.String())
			}
		})
	}
	t.Run("ErrRefused", func(t *testing.T) {
		w := newWorld(t, "")
		w.vars = map[string]string{urlVar: "http://127.0.0.1:1", platformVar: "a-secret-key"}
		code := w.run("status")
		if got := w.err.String(); code != 1 || !strings.Contains(got, "Is the service running?") || strings.Contains(got, "a-secret-key") {
			t.Errorf("exit code %d, stderr %q", code, got)
		}
	})
	t.Run("ErrKeyThatIsNoHeader", func(t *testing.T) {
		w := newWorld(t, "")
		w.vars[platformVar] = "a-secret\nkey"
		if code := w.run("status"); code != 1 || strings.Contains(w.err.String(), "a-secret") {
			t.Errorf("exit code %d, stderr %q", code, w.err.String())
		}
	})
}

func TestNotConfirmed(t *testing.T) {
	w := newWorld(t, "n\n")
	w.InTTY = true
	if code := w.run("engine destroy", "alice"); code != 1 || !strings.Contains(w.err.String(), "engine of alice") {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
}
