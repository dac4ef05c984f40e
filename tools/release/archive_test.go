package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestTar: the bytes depend on names, content and modes in the release, and on nothing else.
func TestTar(t *testing.T) {
	date := time.Unix(1_800_000_000, 0)
	pack := func(mode os.FileMode, turn bool, names ...string) []byte {
		dir := t.TempDir()
		var entries []entry
		for _, name := range names {
			path := filepath.Join(dir, name)
			write(t, path, "content of "+name)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			entries = append(entries, entry{name, path, 0o644})
		}
		if turn {
			slices.Reverse(entries)
		}
		var b bytes.Buffer
		if err := writeTar(&b, entries, date); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	one := pack(0o644, false, "a", "b")
	if !bytes.Equal(one, pack(0o600, true, "a", "b")) {
		t.Error("order and mode of the files on the disk change the archive")
	}
	if bytes.Equal(one, pack(0o644, false, "a", "c")) {
		t.Error("another name does not change the archive")
	}
}

// TestEmptied: a directory that no release wrote is not removed.
func TestEmptied(t *testing.T) {
	dir := t.TempDir()
	if err := emptied(filepath.Join(dir, "new", "dist")); err != nil {
		t.Error(err)
	}
	write(t, filepath.Join(dir, "file"), "of somebody")
	write(t, filepath.Join(dir, sumsName), "of something else")
	if err := emptied(dir); err == nil {
		t.Error("it removes files of others")
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}
