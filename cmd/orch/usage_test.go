package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/config"
)

func TestVersion(t *testing.T) {
	if code, stdout, stderr := orch(t, nil, "version"); code != 0 || stdout != "orch dev, commit unknown, date unknown\n" || stderr != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	for _, flag := range []string{"-version", "--version", "-v"} {
		if code, stdout, stderr := orch(t, nil, flag); code != 0 || stdout != "dev\n" || stderr != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", flag, code, stdout, stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		code, stdout, stderr := orch(t, nil, flag)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q", flag, code, stderr)
		}
		for _, name := range []string{"server", "version", "product", "engine", "audit", "status", "registry", "volume", "node", "provider-keys", "context", "reconcile", "completion"} {
			if !regexp.MustCompile(`(?m)^\s+` + name + `\s+\S`).MatchString(stdout) {
				t.Errorf("%s does not list %s:\n%s", flag, name, stdout)
			}
		}
	}
}

// TestGroupHelp: a group lists the admin's commands beside the products'.
func TestGroupHelp(t *testing.T) {
	for group, names := range map[string][]string{
		"engine": {"provision", "adopt", "discard", "quarantine", "rekey"}, "registry": {"recover", "status"},
		"node": {"adopt"}, "volume": {"forget", "list"},
	} {
		code, stdout, stderr := orch(t, nil, group, "-help")
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q", group, code, stderr)
		}
		for _, name := range names {
			if !regexp.MustCompile(`(?m)^\s+` + name + `\s+\S`).MatchString(stdout) {
				t.Errorf("%s does not list %s:\n%s", group, name, stdout)
			}
		}
	}
}

// TestServerHelp: the help needs no configuration, and documents all settings.
func TestServerHelp(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		code, stdout, stderr := orch(t, nil, "server", flag)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, stderr %q", flag, code, stderr)
		}
		for _, v := range config.Variables() {
			def := v.Default
			if def == "" {
				def = "-"
			}
			line := `(?m)^\s+` + v.Name + `\s+` + regexp.QuoteMeta(def) + `\s+` + regexp.QuoteMeta(v.Description) + `$`
			if !regexp.MustCompile(line).MatchString(stdout) {
				t.Errorf("%s: no line for %s with default %q", flag, v.Name, def)
			}
		}
		for _, name := range []string{"NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR", "VAULT_TOKEN"} {
			if !strings.Contains(stdout, name) {
				t.Errorf("%s does not name %s", flag, name)
			}
		}
	}
}

// TestCalledWrongly: exit code 2, the usage on stderr, nothing started.
func TestCalledWrongly(t *testing.T) {
	for _, args := range [][]string{
		{}, {"no-such-command"}, {"serve"}, {"servers"}, {"server version"}, {"server", "extra"}, {"server", "-no-such-flag"},
		{"dev"}, {"demo"}, {"tools"}, // they are in orch-dev
		{"engine"}, {"engine", "shwo"}, {"product"}, {"audit"}, {"-x", "engine", "list"}, {"engine", "show"}, {"engine", "list", "-x"}, {"completion"}, {"registry"}, {"registry", "stat"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			code, stdout, stderr := orch(t, good(), args...)
			if code != 2 || stdout != "" || !strings.Contains(strings.ToLower(stderr), "usage: orch") {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}
