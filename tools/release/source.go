package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// source is what is released: a commit of a checkout.
type source struct {
	root      string
	version   string    // with "v", semantic, without build metadata
	commit    string    // full hash
	date      time.Time // of the commit, UTC; every time in an artifact
	toolchain string    // as in go1.26.8
}

// plain is the version as it is in the names of files and packages.
func (s source) plain() string { return strings.TrimPrefix(s.version, "v") }

// readSource reads the commit of a checkout.
func readSource(ctx context.Context, root, version string, dirty bool) (source, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return source{}, err
	}
	s := source{root: root, version: version}
	if s.commit, err = s.git(ctx, "rev-parse", "HEAD"); err != nil {
		return s, err
	}
	date, err := s.git(ctx, "show", "-s", "--format=%cI", "HEAD")
	if err != nil {
		return s, err
	}
	if s.date, err = time.Parse(time.RFC3339, date); err != nil {
		return s, err
	}
	s.date = s.date.UTC()
	if s.version == "" {
		s.version = s.described(ctx)
	}
	changed, err := s.git(ctx, "status", "--porcelain")
	if err != nil {
		return s, err
	}
	if changed != "" {
		if !dirty {
			return s, fmt.Errorf("the checkout has uncommitted changes:\n%s", changed)
		}
		s.version += dirtyMark(s.version)
	}
	if semver.Canonical(s.version) != s.version {
		return s, fmt.Errorf("version %q: it must be like v1.2.3 or v1.2.3-rc.1", s.version)
	}
	s.toolchain, err = toolchain(root)
	return s, err
}

// described returns the tag of the commit. A commit without a tag has a version below all
// releases: it does not depend on which tags and objects the clone has.
func (s source) described(ctx context.Context) string {
	if tag, err := s.git(ctx, "describe", "--tags", "--exact-match", "--match", "v[0-9]*", "HEAD"); err == nil {
		return tag
	}
	return "v0.0.0-" + s.date.Format("20060102150405") + ".g" + s.commit[:12]
}

func dirtyMark(version string) string {
	if semver.Prerelease(version) == "" {
		return "-dirty"
	}
	return ".dirty"
}

var goVersion = regexp.MustCompile(`(?m)^GO_VERSION=(\d+\.\d+\.\d+)$`)

// toolchain returns the Go version of releases, which is the one that a machine without Go
// gets.
func toolchain(root string) (string, error) {
	const file = "deploy/setup.sh"
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return "", err
	}
	m := goVersion.FindSubmatch(text)
	if m == nil {
		return "", errors.New(file + " has no GO_VERSION")
	}
	return "go" + string(m[1]), nil
}

// git runs git in the checkout and returns what it prints.
func (s source) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // the arguments are constants
	cmd.Dir = s.root
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", args[0], err, failed.String())
	}
	return strings.TrimRight(string(out), "\n"), nil
}
