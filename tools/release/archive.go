package main

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// entry is a file in an archive.
type entry struct {
	name string // with slashes
	from string // path of its content
	mode fs.FileMode
}

// archives writes the archives of a platform.
func (r release) archives(b build) error {
	orch := []entry{{"orch", b.path("orch"), 0o755}}
	if b.os == "linux" {
		orch = append(orch, entry{"orch-quota", b.path("orch-quota"), 0o755}, entry{"orch-brain", b.path("orch-brain"), 0o755})
		deployed, err := r.deployed()
		if err != nil {
			return err
		}
		orch = append(orch, deployed...)
	}
	if err := r.archive("orch", b, orch); err != nil {
		return err
	}
	if b.os != "linux" {
		return nil
	}
	// The dev stack finds the reference engine and the worker of snapshots beside itself.
	return r.archive("orch-dev", b, []entry{
		{"orch-dev", b.path("orch-dev"), 0o755},
		{"orch", b.path("orch"), 0o755},
		{"orch-brain", b.path("orch-brain"), 0o755},
		{"reference-engine", b.path("reference-engine"), 0o755},
	})
}

// archive writes one archive, whose files are in a directory of the same name.
func (r release) archive(name string, b build, entries []entry) error {
	name += "_" + r.plain() + "_" + b.os + "_" + b.arch
	for _, text := range []string{"LICENSE", "README.md", "CHANGELOG.md"} {
		entries = append(entries, entry{text, filepath.Join(r.root, text), 0o644})
	}
	for i := range entries {
		entries[i].name = name + "/" + entries[i].name
	}
	return create(r.path(name+".tar.gz"), func(w io.Writer) error {
		zipped, err := gzip.NewWriterLevel(w, gzip.BestCompression) // its header has no name and no time
		if err != nil {
			return err
		}
		if err := writeTar(zipped, entries, r.date); err != nil {
			return err
		}
		return zipped.Close()
	})
}

// deployed lists what operators load or copy: policies, the firewall, job files.
func (r release) deployed() ([]entry, error) {
	var all []entry
	for _, pattern := range []string{
		"deploy/consul/*", "deploy/nomad/*", "deploy/vault/*", "deploy/nftables/*.nft", "deploy/systemd/orch.*", "nomad-jobs/*.hcl",
	} {
		found, err := filepath.Glob(filepath.Join(r.root, pattern))
		if err != nil || len(found) == 0 {
			return nil, cmp.Or(err, errors.New("nothing matches "+pattern))
		}
		for _, path := range found {
			name, err := filepath.Rel(r.root, path)
			if err != nil {
				return nil, err
			}
			all = append(all, entry{filepath.ToSlash(name), path, 0o644})
		}
	}
	return all, nil
}

// writeTar writes files sorted by name, with one time, and root as their owner.
func writeTar(w io.Writer, entries []entry, date time.Time) error {
	entries = slices.SortedFunc(slices.Values(entries), func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	t := tar.NewWriter(w)
	for _, e := range entries {
		if err := writeEntry(t, e, date); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeEntry(t *tar.Writer, e entry, date time.Time) error {
	f, err := os.Open(e.from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: e.name, Size: info.Size(), Mode: int64(e.mode), ModTime: date, Format: tar.FormatUSTAR,
	}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// create writes a file that everybody may read.
func create(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // artifacts are public
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := bufio.NewWriterSize(f, 1<<20)
	if err := write(b); err != nil {
		return err
	}
	return b.Flush()
}
