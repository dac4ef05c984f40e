// Command release builds a release of orch from a checkout: static binaries in archives,
// packages for Debian and RPM, container images, an SBOM for each binary, checksums, and a
// signature if there is a key. Two runs on one commit write the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	root := flags.String("root", ".", "the checkout `directory`")
	out := flags.String("out", "dist", "`directory` to write to, which is replaced")
	list := flags.String("platforms", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64", "comma-separated `platforms`")
	version := flags.String("version", "", "`version`, such as v1.2.3 (default: the tag of the commit, or a version below all releases)")
	dirty := flags.Bool("dirty", false, "accept a checkout with uncommitted changes; the version then says so")
	if err := flags.Parse(args); err != nil {
		return err
	}
	key, err := signingKey(os.Getenv)
	if err != nil {
		return err
	}
	src, err := readSource(ctx, *root, *version, *dirty)
	if err != nil {
		return err
	}
	// Compressed bytes depend on the Go version, too.
	if runtime.Version() != src.toolchain {
		return fmt.Errorf("this is a build of %s, and releases use %s: run it with GOTOOLCHAIN=%[2]s", runtime.Version(), src.toolchain)
	}
	platforms, err := parsePlatforms(*list)
	if err != nil {
		return err
	}
	if err := emptied(*out); err != nil {
		return err
	}
	r := release{source: src, out: *out}
	if err := r.write(ctx, platforms); err != nil {
		return err
	}
	if err := writeSums(*out); err != nil {
		return err
	}
	if key == nil {
		fmt.Fprintf(os.Stderr, "release: not signed, because %s is not set\n", keyVariable)
		return nil
	}
	return signSums(*out, key, src)
}

// release is one run: a source, and the directory to which its artifacts are written.
type release struct {
	source
	out string
}

// write writes all artifacts except for the checksums.
func (r release) write(ctx context.Context, platforms []platform) error {
	work, err := os.MkdirTemp("", "orch-release-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	var linux []build
	for _, p := range platforms {
		fmt.Fprintf(os.Stderr, "release: %s for %s\n", r.version, p)
		b := build{platform: p, dir: filepath.Join(work, p.os+"_"+p.arch)}
		if err := r.compile(ctx, b); err != nil {
			return err
		}
		if err := r.boms(b); err != nil {
			return err
		}
		if err := r.archives(b); err != nil {
			return err
		}
		if p.os != "linux" {
			continue
		}
		if err := r.packages(b); err != nil {
			return err
		}
		linux = append(linux, b)
	}
	if len(linux) == 0 {
		return nil
	}
	return r.images(linux, work)
}

// path returns the path of an artifact.
func (r release) path(name string) string { return filepath.Join(r.out, name) }

// ownName is the file by which a directory is known as one that only releases write to.
const ownName = ".orch-release"

// emptied makes an empty directory. It refuses to remove what no release wrote.
func emptied(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, ownName)); err != nil {
			return fmt.Errorf("%s is not empty, and not of an earlier release: remove it first", dir)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // artifacts are public
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownName), nil, 0o644) //nolint:gosec // as above
}

// platform is what Go calls GOOS and GOARCH.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

func parsePlatforms(list string) ([]platform, error) {
	var all []platform
	for name := range strings.SplitSeq(list, ",") {
		system, arch, _ := strings.Cut(name, "/")
		if (system != "linux" && system != "darwin") || (arch != "amd64" && arch != "arm64") {
			return nil, fmt.Errorf("platform %q: it must be linux or darwin, and amd64 or arm64", name)
		}
		all = append(all, platform{system, arch})
	}
	return all, nil
}
