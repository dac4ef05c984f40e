package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// binary is a command of the checkout.
type binary struct {
	name      string // in cmd/
	linuxOnly bool
	stamped   bool // knows its version
}

var binaries = []binary{
	{name: "orch", stamped: true},
	{name: "orch-quota", linuxOnly: true},
	{name: "orch-brain", linuxOnly: true},
	{name: "orch-dev", linuxOnly: true, stamped: true},
	{name: "reference-engine", linuxOnly: true},
}

// build is the binaries of one platform.
type build struct {
	platform
	dir string
}

// names returns the binaries that the platform has.
func (b build) names() []string {
	var all []string
	for _, bin := range binaries {
		if b.os == "linux" || !bin.linuxOnly {
			all = append(all, bin.name)
		}
	}
	return all
}

func (b build) path(name string) string { return filepath.Join(b.dir, name) }

// cmdline is the package whose variables the linker sets, as in the Makefile.
const cmdline = "github.com/septemberai/orch/internal/cmdline"

// compile builds the binaries of a platform.
func (r release) compile(ctx context.Context, b build) error {
	if err := os.MkdirAll(b.dir, 0o750); err != nil {
		return err
	}
	for _, bin := range binaries {
		if !slices.Contains(b.names(), bin.name) {
			continue
		}
		ldflags := "-s -w"
		if bin.stamped {
			ldflags += fmt.Sprintf(" -X %[1]s.version=%[2]s -X %[1]s.commit=%[3]s -X %[1]s.date=%[4]s",
				cmdline, r.version, r.commit, r.date.Format("2006-01-02T15:04:05Z07:00"))
		}
		// Without buildvcs: what it records depends on the tags that the clone has.
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", b.path(bin.name), "./cmd/"+bin.name) //nolint:gosec // names of the table above
		cmd.Dir, cmd.Env = r.root, r.environment(b.platform)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s for %s: %w\n%s", bin.name, b.platform, err, out)
		}
	}
	return nil
}

// settings are variables that builds do not inherit: those of Go that can change what it builds,
// and the password of the key.
var settings = []string{"GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOFLAGS", "GOEXPERIMENT", "GOFIPS140", "GOTOOLCHAIN", "GOWORK", "GOENV", "CGO_ENABLED", "GODEBUG", passwordVariable}

// environment returns this process's environment with fixed settings of Go.
func (r release) environment(p platform) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(settings, name)
	})
	return append(env, "GOOS="+p.os, "GOARCH="+p.arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-mod=readonly",
		"GOWORK=off", "GOTOOLCHAIN="+r.toolchain, "CGO_ENABLED=0")
}
