package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCompletion: what the executable prints for a shell that completes a line.
func TestCompletion(t *testing.T) {
	for line, want := range map[string][]string{
		"orch eng":                           {"engine"},
		"orch engine s":                      {"show", "start", "stop"},
		"orch engine provision -i":           {"-idempotency-key"},
		"orch engine destroy -y":             {"-yes"},
		"orch engine list -status s":         {"sleeping", "stopped"},
		"orch audit tail -action rot":        {"rotate_key"},
		"orch product policy -set max":       {"max_engines="},
		"orch engine d":                      {"destroy", "discard"},
		"orch engine re":                     {"rekey", "restore"},
		"orch engine restore -sn":            {"-snapshot"},
		"orch snapshot ":                     {"delete", "import", "list", "take"},
		"orch engine wa":                     {"wait", "watch"},
		"orch engine wait -for d":            {"destroyed", "destroying"},
		"orch context ":                      {"add", "list", "remove", "use"},
		"orch provider-keys ":                {"apply", "status"},
		"orch node adopt -a":                 {"-address"},
		"orch reconcile -d":                  {"-dry-run"},
		"orch volume ":                       {"forget", "list"},
		"orch registry ":                     {"recover", "status"},
		"orch completion ":                   {"bash", "zsh"},
		"orch product ro":                    {"rotate-key"},
		"orch status -js":                    {"-json"},
		"orch engine show alice@example.com": nil,
	} {
		code, stdout, stderr := orch(t, []string{"COMP_LINE=" + line})
		got := strings.Fields(stdout)
		slices.Sort(got)
		if code != 0 || stderr != "" || !slices.Equal(got, want) {
			t.Errorf("%q: exit code %d, got %v, want %v, stderr %q", line, code, got, want, stderr)
		}
	}
}

// TestCompletionScripts: bash accepts the script, and completes with the executable that
// printed it, even if its path needs quotes.
func TestCompletionScripts(t *testing.T) {
	code, script, stderr := orch(t, nil, "completion", "zsh")
	if code != 0 || stderr != "" || !strings.HasPrefix(script, "autoload -U +X bashcompinit") || !strings.Contains(script, "complete -o nospace -C ") {
		t.Errorf("exit code %d, script %q, stderr %q", code, script, stderr)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash")
	}
	self := command(t, nil).Path
	odd := filepath.Join(t.TempDir(), "an orch's path")
	if out, err := exec.CommandContext(t.Context(), "cp", self, odd).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, path := range []string{self, odd} {
		cmd := command(t, nil, "completion", "bash")
		cmd.Path = path
		script, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		// Bash runs the registered command with the line in its environment.
		shell := exec.CommandContext(t.Context(), bash, "--norc", "-c", string(script)+`
			eval "set -- $(complete -p orch)"
			COMP_LINE="orch engine des" COMP_POINT=15 bash -c "$3"`)
		shell.Env = command(t, nil).Env
		shell.Env = append(shell.Env, "PATH=/usr/bin:/bin")
		out, err := shell.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "destroy" {
			t.Errorf("%s: bash completes with %q, %v; script %q", path, out, err, script)
		}
	}
}
