// Package treetest makes and compares directories for tests.
package treetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain/tree"
)

// Fill puts into dir all that a brain may contain: odd names, links, holes, modes, times,
// attributes, FIFOs, and, as the only things that are skipped, a name that restores use, a
// socket and, as root, a device. It returns the names of these.
func Fill(t *testing.T, dir string) (skipped []string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(path("deep/er/est"), 0o755))
	must(os.Mkdir(path("empty"), 0o700))
	must(os.Mkdir(path("read-only"), 0o755))
	must(os.WriteFile(path("read-only/file"), []byte("x"), 0o444))
	must(os.WriteFile(path("empty file"), nil, 0o600))
	must(os.WriteFile(path("deep/er/est/program"), []byte(strings.Repeat("words and words ", 9999)), 0o4755))
	must(os.Chmod(path("deep/er/est/program"), 0o755|os.ModeSetuid))
	for _, name := range []string{
		"not\xffutf8", "line\nbreak", "tab\t\"quotes\" 'and' \\ back", "-rf", "ünïcödé", "=", " ", "a=b", "...", "*", "GNUSparseFile.0",
		strings.Repeat("n", 255), strings.Repeat("\xfe", 255), "deep/" + strings.Repeat("d", 250),
	} {
		must(os.WriteFile(path(name), []byte(name), 0o640))
	}
	long := dir
	for range 12 { // longer than any field of a header
		long = filepath.Join(long, strings.Repeat("p", 100))
		must(os.Mkdir(long, 0o711))
	}
	must(os.WriteFile(filepath.Join(long, "file"), []byte("at the end"), 0o600))
	must(os.Symlink("/etc/passwd", path("absolute link")))
	must(os.Symlink("../../..", path("link out")))
	must(os.Symlink("nowhere\n\xff"+strings.Repeat("/l", 400), path("deep/dangling")))
	must(os.Link(path("deep/er/est/program"), path("hard")))
	must(os.Link(path("deep/er/est/program"), path("deep/hard")))
	must(os.Link(path("not\xffutf8"), path("zzz\xff")))
	must(unix.Mkfifo(path("fifo"), 0o620))

	holes(t, path("all hole"), 10<<30)
	holes(t, path("hole at end"), 1<<20, 0)
	holes(t, path("holes"), 40<<20, 0, 8<<20, 9<<20, 39<<20)
	holes(t, path("last byte"), 10<<30, 10<<30-4096)
	for i, name := range []string{"deep", "empty", "="} {
		for j := range i + 1 {
			err := unix.Setxattr(path(name), fmt.Sprintf("user.test.%d", j), []byte("a\x00b\n="+name), 0)
			if err != nil && err != unix.ENOTSUP {
				t.Fatal(err)
			}
		}
	}

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("socket")})
	must(err)
	l.SetUnlinkOnClose(false)
	must(l.Close())
	skipped = append(skipped, "socket")
	if os.Getuid() == 0 {
		must(unix.Mknod(path("deep/device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		skipped = append([]string{"deep/device"}, skipped...)
	}
	reserved := tree.Reserved + " of the engine"
	must(os.WriteFile(path(reserved), nil, 0o600))
	skipped = append([]string{reserved}, skipped...)
	must(os.Chtimes(path("hard"), time.Time{}, time.Unix(-1234567, 999999999)))
	must(os.Chtimes(path("holes"), time.Time{}, time.Unix(1<<33, 1)))
	must(os.Chtimes(path("empty"), time.Time{}, time.Unix(7, 123456789)))
	must(os.Chmod(path("read-only"), 0o555|os.ModeSetgid))
	return skipped
}

// holes makes a file of size bytes with 4 KiB of data at each offset.
func holes(t *testing.T, path string, size int64, offsets ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range offsets {
		if _, err := f.WriteAt([]byte(strings.Repeat("data", 1024)), at); err != nil {
			t.Fatal(err)
		}
	}
}

// Describe returns a line for each entry of dir, with all that a snapshot keeps: contents,
// links, modes, times, attributes. It has no line for sockets, devices, and dir itself.
func Describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	d := describer{lines: map[string]string{}, names: map[tree.File]string{}}
	if err := tree.Walk(t.Context(), dir, &d); err != nil {
		t.Fatal(err)
	}
	return d.lines
}

// Equal fails the test if two directories differ, by what Describe says about them.
func Equal(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(Describe(t, want), Describe(t, got)); diff != "" {
		t.Errorf("the directories differ (-want +got):\n%s", diff)
	}
}

// Used returns how many bytes the files of dir use on disk.
func Used(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var s unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &s)
		}
		n += s.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

type describer struct {
	lines map[string]string
	names map[tree.File]string
}

func (d *describer) Enter(e *tree.Entry, dir *os.File) error {
	if e.Path == "." {
		return nil
	}
	return d.line(e, dir, "")
}

func (d *describer) Skip(string) {}

func (d *describer) Leave(*tree.Entry, *os.File) error { return nil }

func (d *describer) Other(e *tree.Entry) error {
	switch e.Kind() {
	case unix.S_IFLNK:
		target, err := e.Target()
		if err != nil {
			return err
		}
		return d.line(e, nil, target)
	case unix.S_IFIFO:
		return d.line(e, nil, "")
	case unix.S_IFREG:
	default:
		return nil
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	extents, err := tree.Extents(f, e.Stat.Size)
	if err != nil {
		return err
	}
	sum := sha256.New()
	for _, x := range extents {
		_, _ = fmt.Fprintf(sum, "%d %d\n", x.Offset, x.Length)
		if _, err := io.Copy(sum, io.NewSectionReader(f, x.Offset, x.Length)); err != nil {
			return err
		}
	}
	first, seen := d.names[e.File()]
	if !seen {
		first = e.Path
		d.names[e.File()] = first
	}
	return d.line(e, f, fmt.Sprintf("%d bytes %x, the file %q", e.Stat.Size, sum.Sum(nil), first))
}

func (d *describer) line(e *tree.Entry, f *os.File, more string) error {
	var attributes []tree.Xattr
	if f != nil {
		var err error
		if attributes, err = tree.Xattrs(f); err != nil {
			return err
		}
	}
	d.lines[e.Path] = fmt.Sprintf("%o %d.%09d %q %q", e.Stat.Mode, e.Stat.Mtim.Sec, e.Stat.Mtim.Nsec, attributes, more)
	return nil
}
