package main

import (
	"bytes"
	"debug/elf"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dependencies returns all packages that a command is built from. It must have this one.
func dependencies(t *testing.T, command, one string) []string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", command)
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, one) {
		t.Fatalf("these are not the dependencies of %s: %v", command, deps)
	}
	return deps
}

// TestDependencies: the deployed binary cannot start agents, download or compile programs,
// or change networks or mounts.
func TestDependencies(t *testing.T) {
	deps := dependencies(t, ".", "github.com/septemberai/orch/scheduler")
	unwanted := regexp.MustCompile(`^(github\.com/(vishvananda/net(link|ns)|hashicorp/hc-install|ProtonMail/go-crypto)|` +
		`github\.com/septemberai/orch/internal/(chaos|contract|dev|devstack|testpg)|runtime/cgo|testing)(/|$)`)
	for _, dep := range deps {
		if unwanted.MatchString(dep) {
			t.Errorf("orch depends on %s", dep)
		}
	}
}

// TestWorkerDependencies: the worker of snapshots knows no store of the service, has no client
// of a bucket, and runs no program but itself, which checks one database (brain/integrity).
func TestWorkerDependencies(t *testing.T) {
	unwanted := regexp.MustCompile(`^(github\.com/(hashicorp|minio)|runtime/cgo|testing)(/|$)`)
	allowed := regexp.MustCompile(`^github\.com/septemberai/orch/(brain(/archive|/freeze|/integrity|/transfer|/tree|/worker)?|cmd/orch-brain|internal/pause)$`)
	for _, dep := range dependencies(t, "../orch-brain", "github.com/septemberai/orch/brain/worker") {
		if unwanted.MatchString(dep) || strings.HasPrefix(dep, "github.com/septemberai/orch/") && !allowed.MatchString(dep) {
			t.Errorf("orch-brain depends on %s", dep)
		}
	}
}

// TestShipped builds orch as it is deployed.
func TestShipped(t *testing.T) {
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "make", "-s", "-C", "../..", "build", "BIN="+dir, "VERSION=v1.2.3", "COMMIT=0123abcd", "DATE=2026-11-28T15:00:00Z")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path := filepath.Join(dir, "orch")

	t.Run("Static", func(t *testing.T) {
		for _, name := range []string{"orch", "orch-brain"} {
			f, err := elf.Open(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
					t.Errorf("%s has a program header of type %s", name, p.Type)
				}
			}
			_ = f.Close()
		}
	})
	t.Run("NoFaultPoints", func(t *testing.T) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// A variable that it does read shows that the search works.
		if !bytes.Contains(text, []byte("ORCH_ADMIN_KEY")) {
			t.Fatal("its strings cannot be read")
		}
		for _, word := range []string{"ORCH_FAULT", "kill POINT", "ORCH_DEVSTACK_REAPER"} {
			if bytes.Contains(text, []byte(word)) {
				t.Errorf("%q is in it", word)
			}
		}
	})
	t.Run("Version", func(t *testing.T) {
		out, err := exec.CommandContext(t.Context(), path, "version").Output()
		if want := "orch v1.2.3, commit 0123abcd, date 2026-11-28T15:00:00Z\n"; err != nil || string(out) != want {
			t.Errorf("got %q, %v, want %q", out, err, want)
		}
	})
}

// TestServerIgnoresFault: even an invalid value of the tests' variable has no effect. It is
// reported like any other unknown variable, without its value.
func TestServerIgnoresFault(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	// It gets as far as its port, which is in use.
	code, _, stderr := orch(t, good("ORCH_FAULT=a mistake", "ORCH_ADDR="+l.Addr().String()), "server")
	if code != 1 || !strings.Contains(stderr, "no effect") || !strings.Contains(stderr, "variable=ORCH_FAULT") || strings.Contains(stderr, "a mistake") || !strings.Contains(stderr, l.Addr().String()) {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}
