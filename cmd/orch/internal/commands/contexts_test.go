package commands

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// addContexts adds the contexts dev, which is selected, and prod.
func addContexts(t *testing.T, w *world) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(" pk-of-prod\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.vars["PROD_ADMIN_KEY"] = "ak-of-prod"
	for _, args := range [][]string{
		{"-address", "http://dev:1", "dev"},
		{"-address", "https://prod:1", "-product", "acme", "-platform-key-file", key, "-admin-key-env", "PROD_ADMIN_KEY", "prod"},
	} {
		if code := w.run("context add", args...); code != 0 {
			t.Fatalf("%v: exit code %d, stderr %q", args, code, w.err.String())
		}
	}
}

// TestChoose: which service is called, and with which keys.
func TestChoose(t *testing.T) {
	for name, c := range map[string]struct {
		choice          choice
		vars            map[string]string
		use             string
		address         string
		platform, admin string
	}{
		"nothing is named: the context in use":        {choice{}, nil, "", "http://dev:1", "", ""},
		"its keys are the usual ones":                 {choice{}, map[string]string{platformVar: "pk", adminVar: "ak"}, "", "http://dev:1", "pk", "ak"},
		"another is in use":                           {choice{}, map[string]string{platformVar: "pk", "PROD_ADMIN_KEY": "ak-of-prod"}, "prod", "https://prod:1", "pk-of-prod", "ak-of-prod"},
		"the environment wins over the one in use":    {choice{}, map[string]string{urlVar: "http://env:1", platformVar: "pk"}, "prod", "http://env:1", "pk", ""},
		"-address wins, and gets no key of a context": {choice{address: "http://flag:1"}, map[string]string{urlVar: "http://env:1", adminVar: "ak"}, "prod", "http://flag:1", "", "ak"},
		"-context wins over the environment":          {choice{context: "prod"}, map[string]string{urlVar: "http://env:1", platformVar: "pk", adminVar: "ak"}, "", "https://prod:1", "pk-of-prod", ""},
		"-context with another address":               {choice{context: "prod", address: "http://tunnel:1"}, nil, "", "http://tunnel:1", "pk-of-prod", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "")
			addContexts(t, w)
			if c.use != "" && w.run("context use", c.use) != 0 {
				t.Fatal(w.err.String())
			}
			w.vars = c.vars
			got, err := choose(&w.Env, c.choice)
			if err != nil {
				t.Fatal(err)
			}
			platform, perr := got.platform.read(&w.Env)
			admin, aerr := got.admin.read(&w.Env)
			if err := errors.Join(perr, aerr); err != nil || got.address != c.address || platform != c.platform || admin != c.admin {
				t.Errorf("got %s with %q and %q, %v", got.address, platform, admin, err)
			}
		})
	}
	t.Run("a context with one key takes no other from the environment", func(t *testing.T) {
		w := newWorld(t, "")
		addContexts(t, w)
		if code := w.run("context add", "-address", "https://half:1", "-admin-key-env", "PROD_ADMIN_KEY", "half"); code != 0 {
			t.Fatal(w.err.String())
		}
		w.vars[platformVar], w.vars[adminVar] = "pk-of-dev", "ak-of-dev"
		got, err := choose(&w.Env, choice{context: "half"})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := got.client(&w.Env, needsEither); err != nil || c.PlatformKey != "" || c.AdminKey != "ak-of-prod" {
			t.Errorf("got %+v, %v", c, err)
		}
		if c, err := got.client(&w.Env, needsPlatformKey); err == nil || !strings.Contains(err.Error(), "names no platform key") {
			t.Errorf("got %+v, %v", c, err)
		}
	})
	t.Run("without any context", func(t *testing.T) {
		w := newWorld(t, "")
		w.vars = nil
		for name, dir := range map[string]func() (string, error){
			"no file": w.ConfigDir, "no home": func() (string, error) { return "", errors.New("there is no home") },
		} {
			w.ConfigDir = dir
			if got, err := choose(&w.Env, choice{}); err != nil || got.address != defaultURL || got.platform.Env != platformVar || got.admin.Env != adminVar {
				t.Errorf("%s: got %+v, %v", name, got, err)
			}
		}
	})
}

// TestNeeds: a command gets only the keys that it needs.
func TestNeeds(t *testing.T) {
	for n, want := range map[need][2]string{needsPlatformKey: {"pk", ""}, needsAdminKey: {"", "ak"}, needsEither: {"pk", "ak"}} {
		w := newWorld(t, "")
		target, err := choose(&w.Env, choice{})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := target.client(&w.Env, n); err != nil || c.PlatformKey != want[0] || c.AdminKey != want[1] {
			t.Errorf("%v: %+v, %v", n, c, err)
		}
	}
}

func TestContextCommands(t *testing.T) {
	w := newWorld(t, "")
	if code := w.run("context list"); code != 0 || w.takeOut() != "there are no contexts; orch context add creates one\n" {
		t.Errorf("none: exit code %d, stderr %q", code, w.err.String())
	}
	addContexts(t, w)
	w.takeOut()
	list := func() (lines []string) {
		if code := w.run("context list"); code != 0 {
			t.Errorf("exit code %d, stderr %q", code, w.err.String())
		}
		for line := range strings.Lines(w.takeOut()) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	if got := list(); len(got) != 3 || got[1] != "* dev http://dev:1 - - -" || !strings.HasPrefix(got[2], "- prod https://prod:1 acme file /") || !strings.HasSuffix(got[2], " $PROD_ADMIN_KEY") {
		t.Errorf("listed as %q", got)
	}
	if code := w.run("context use", "prod"); code != 0 {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
	w.takeOut()
	if got := list(); !strings.HasPrefix(got[2], "* prod") {
		t.Errorf("after use listed as %q", got)
	}
	var all contexts
	if code := w.run("context list", "-json"); code != 0 || json.Unmarshal([]byte(w.takeOut()), &all) != nil || all.Current != "prod" || all.Contexts["prod"].Product != "acme" {
		t.Errorf("-json: exit code %d, %+v", code, all)
	}

	// The file is readable only by its owner, contains no key, and no temporary file
	// remains.
	file, err := contextsFile(&w.Env)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info, err)
	}
	if dir, err := os.Stat(filepath.Dir(file)); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v; want mode 0700", dir, err)
	}
	if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), "pk-of-prod") {
		t.Errorf("%v: the file holds\n%s", err, text)
	}
	if left, err := filepath.Glob(file + "*"); err != nil || len(left) != 2 {
		t.Errorf("%v, %v; want the file and its lock", left, err)
	}

	// A refused command changes nothing.
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"use -replace":          {"dev"},
		"not a URL":             {"-address", "h", "c"},
		"a user or a password":  {"-address", "http://u:secret@h", "c"},
		"not a key":             {"-platform-key-env", "pk-secret", "c"},
		"either -admin-key-env": {"-admin-key-env", "A", "-admin-key-file", "f", "c"},
		"got 0 arguments,":      {},
	} {
		w.err.Reset()
		if code := w.run("context add", args...); code != 2 || !strings.Contains(w.err.String(), want) || strings.Contains(w.err.String(), "secret") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, w.err.String())
		}
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("%v: the file became\n%s", err, after)
	}
	if code := w.run("context add", "-replace", "-address", "http://dev:2", "dev"); code != 0 {
		t.Errorf("exit code %d, stderr %q", code, w.err.String())
	}
	w.takeOut()
	if got := list(); !strings.HasPrefix(got[1], "- dev http://dev:2") {
		t.Errorf("after -replace listed as %q", got)
	}
}

// TestContextUseSaysWhatCounts: environment variables can override the context in use.
func TestContextUseSaysWhatCounts(t *testing.T) {
	w := newWorld(t, "")
	addContexts(t, w) // dev names no key
	for name, c := range map[string]struct {
		vars      map[string]string
		use, says string
	}{
		"an address":              {map[string]string{urlVar: "http://h", adminVar: "ak"}, "dev", urlVar + " is set and overrides this context: unset it, or pass -context to a command.\n"},
		"a key":                   {map[string]string{adminVar: "ak"}, "dev", "This context has no key: the key in " + adminVar + " is sent to http://dev:1.\n"},
		"a key beside one":        {map[string]string{adminVar: "ak"}, "prod", ""},
		"nothing":                 {nil, "dev", ""},
		"an address, as the file": {map[string]string{urlVar: "https://prod:1"}, "prod", urlVar + " is set and overrides this context: unset it, or pass -context to a command.\n"},
	} {
		w.err.Reset()
		w.vars = c.vars
		if code := w.run("context use", c.use); code != 0 || w.err.String() != c.says {
			t.Errorf("%s: exit code %d, stderr %q, want %q", name, code, w.err.String(), c.says)
		}
	}
	w.err.Reset()
	w.vars = map[string]string{urlVar: "http://h"}
	if code := w.run("context use", "-json", "dev"); code != 0 || w.err.String() != "" {
		t.Errorf("-json: exit code %d, stderr %q", code, w.err.String())
	}
}

func TestContextRemove(t *testing.T) {
	w := newWorld(t, "y\n")
	addContexts(t, w)
	w.takeOut()
	if code := w.run("context remove", "-yes", "gone"); code != 2 || !strings.Contains(w.err.String(), "no context \"gone\"") {
		t.Errorf("one that is not there: exit code %d, stderr %q", code, w.err.String())
	}
	w.err.Reset()
	if code := w.run("context remove", "prod"); code != 2 || !strings.Contains(w.err.String(), "give -yes") {
		t.Errorf("without a terminal: exit code %d, stderr %q", code, w.err.String())
	}
	w.err.Reset()
	w.InTTY = true
	if code := w.run("context remove", "dev"); code != 0 || w.err.String() != "Remove the context dev? [y/N] " || !strings.Contains(w.takeOut(), "none; select one with orch context use") {
		t.Errorf("the one in use: exit code %d, stderr %q", code, w.err.String())
	}
	w.err.Reset()
	if code := w.run("context remove", "prod"); code != 1 || !strings.HasSuffix(w.err.String(), "Nothing was done.\n") {
		t.Errorf("without a yes: exit code %d, stderr %q", code, w.err.String())
	}
	all, err := readContexts(&w.Env)
	if err != nil || all.Current != "" || len(all.names()) != 1 || all.names()[0] != "prod" {
		t.Errorf("left is %+v, %v", all, err)
	}
	w.takeOut()
	if code := w.run("context remove", "-yes", "-json", "prod"); code != 0 || w.takeOut() != "{\n  \"removed\": \"prod\"\n}\n" {
		t.Errorf("-yes: exit code %d, stderr %q", code, w.err.String())
	}
}

// TestContextsTogether: processes that change the file concurrently lose no change.
func TestContextsTogether(t *testing.T) {
	w := newWorld(t, "")
	const n = 16
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := changeContexts(&w.Env, func(c *contexts) error {
				c.Contexts[fmt.Sprint(i)] = &profile{Address: defaultURL}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := readContexts(&w.Env); err != nil || len(got.Contexts) != n {
		t.Errorf("%d contexts, %v; want %d", len(got.Contexts), err, n)
	}
}

// TestContextsDamaged: with an invalid file no service is called.
func TestContextsDamaged(t *testing.T) {
	for _, text := range []string{"", "{", `{"contexts": {"a": null}, "current": "a"}`, `{"contexts": {"a": {"adress": "http://h"}}, "current": "a"}`, `{"contexts": {}, "current": "gone"}`} {
		w := newWorld(t, "")
		delete(w.vars, urlVar)
		file, err := contextsFile(&w.Env)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if got, err := choose(&w.Env, choice{}); err == nil {
			t.Errorf("%q: got %+v", text, got)
		}
		for _, command := range [][]string{{"engine", "list"}, {"context", "use", "a"}} {
			if code := w.run(command[0], command[1:]...); code != 2 {
				t.Errorf("%q: %v: exit code %d, want 2; stderr %q", text, command, code, w.err.String())
			}
		}
	}
}

// TestKeyFile: a key that cannot be read is reported before a service is called.
func TestKeyFile(t *testing.T) {
	w := newWorld(t, "")
	file := filepath.Join(t.TempDir(), "key")
	delete(w.vars, urlVar)
	for _, args := range [][]string{{"-platform-key-file", file}, {"-platform-key-env", "NOT_SET"}} {
		if code := w.run("context add", append(args, "c")...); code != 2 || strings.Contains(w.err.String(), args[1]) {
			t.Errorf("%v: exit code %d, stderr %q", args, code, w.err.String())
		}
		w.err.Reset()
	}
	if err := os.WriteFile(file, []byte("pk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := w.run("context add", "-platform-key-file", file, "c"); code != 0 {
		t.Fatal(w.err.String())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if code := w.run("engine list"); code != 2 || !strings.Contains(w.err.String(), "no such file") {
		t.Errorf("without the file: exit code %d, stderr %q", code, w.err.String())
	}
	if err := os.WriteFile(file, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.err.Reset()
	if code := w.run("engine list"); code != 2 || !strings.Contains(w.err.String(), "is empty") {
		t.Errorf("an empty one: exit code %d, stderr %q", code, w.err.String())
	}
}
