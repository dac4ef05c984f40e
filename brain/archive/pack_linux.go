// Package archive is the format of a snapshot: a tar archive, compressed by zstd, encrypted
// by age. docs/snapshots.md describes it for those who want to read one without orch.
//
// Pack and Unpack stream. Their memory does not depend on the size of a brain, but on the
// number of its files with several names (about 150 bytes each, Pack alone) and on the
// largest directory (its names). Together with the compression that is about 40 MiB.
package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// window is how far back the compression refers. Decompression needs as much memory.
const window = 4 << 20

// Packed describes what Pack wrote.
type Packed struct {
	brain.Content
	// SkippedNames are the first of the entries that are not in the archive.
	SkippedNames []string
}

const maxNames = 20

// Pack writes the directory dir to w. Nobody may change dir meanwhile. Sockets and devices
// are skipped. Equal trees and keys give equal bytes.
//
// Errors of w are returned as they are; others have the kind Unreadable.
func Pack(ctx context.Context, dir string, key Key, w io.Writer) (Packed, error) {
	stored := &counter{to: w, sum: sha256.New()}
	seal, err := newSealer(key, stored)
	if err != nil {
		return Packed{}, err
	}
	// Two: one goroutine compresses while this one reads.
	z, err := zstd.NewWriter(seal, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true),
		zstd.WithAllLitEntropyCompression(true)) // as zstd does: numbers in binary have few repetitions
	if err != nil {
		return Packed{}, err
	}
	plain := &counter{to: z, sum: sha256.New()}
	p := packer{tar: tarWriter{to: plain}, links: map[tree.File]string{}, buffer: make([]byte, 256<<10)}
	err = tree.Walk(ctx, dir, &p)
	if err == nil {
		err = p.tar.Close()
	}
	if err != nil {
		_ = z.Close() // it ends the goroutine that compresses
		return Packed{}, brain.Local(err, brain.Unreadable, "the brain cannot be read")
	}
	if err = z.Close(); err == nil {
		err = seal.Close()
	}
	p.packed.SHA256, p.packed.StoredBytes = stored.hex(), stored.n
	p.packed.TarSHA256, p.packed.TarBytes = plain.hex(), plain.n
	return p.packed, err
}

// counter counts and sums what is written.
type counter struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	_, _ = c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) hex() string { return hex.EncodeToString(c.sum.Sum(nil)) }

type packer struct {
	tar    tarWriter
	links  map[tree.File]string // the first name of each file with several
	packed Packed
	buffer []byte
}

func entryOf(e *tree.Entry, kind byte) *entry {
	s := &e.Stat
	return &entry{kind: kind, name: e.Path, mode: s.Mode & 0o7777, uid: s.Uid, gid: s.Gid, seconds: s.Mtim.Sec, nanos: s.Mtim.Nsec}
}

func (p *packer) Enter(e *tree.Entry, dir *os.File) (err error) {
	a := entryOf(e, typeDir)
	if a.xattrs, err = p.xattrs(dir); err != nil {
		return err
	}
	p.packed.Entries++
	return p.tar.begin(a)
}

func (p *packer) Leave(*tree.Entry, *os.File) error { return nil }

func (p *packer) Other(e *tree.Entry) (err error) {
	switch e.Kind() {
	case unix.S_IFREG:
		return p.file(e)
	case unix.S_IFLNK:
		a := entryOf(e, typeSymlink)
		if a.link, err = e.Target(); err != nil {
			return err
		}
		p.packed.Entries++
		return p.tar.begin(a)
	case unix.S_IFIFO:
		p.packed.Entries++
		return p.tar.begin(entryOf(e, typeFIFO))
	}
	p.Skip(e.Path)
	return nil
}

// Skip implements tree.Visitor.
func (p *packer) Skip(name string) {
	p.packed.Skipped++
	if len(p.packed.SkippedNames) < maxNames {
		p.packed.SkippedNames = append(p.packed.SkippedNames, filepath.ToSlash(name))
	}
}

func (p *packer) file(e *tree.Entry) error {
	p.packed.Entries++
	if e.Linked() {
		if first, seen := p.links[e.File()]; seen {
			a := entryOf(e, typeLink)
			a.link = first
			return p.tar.begin(a)
		}
		p.links[e.File()] = e.Path
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	a := entryOf(e, typeFile)
	if a.size = e.Stat.Size; a.size > maxSize {
		return brain.Errorf(brain.Unreadable, "a file has more than %d bytes", int64(maxSize))
	}
	if a.xattrs, err = p.xattrs(f); err != nil {
		return err
	}
	extents, err := tree.Extents(f, a.size)
	if err != nil {
		return err
	}
	whole := []tree.Extent{{Length: a.size}}
	if a.size > 0 && (len(extents) != 1 || extents[0] != whole[0]) {
		a.sparse, a.extents = true, extents
		whole = extents
	}
	p.packed.Bytes += a.size
	if err := p.tar.begin(a); err != nil {
		return err
	}
	for _, x := range whole {
		part := io.NewSectionReader(f, x.Offset, x.Length)
		// The struct hides methods that would make their own buffers.
		if _, err := io.CopyBuffer(struct{ io.Writer }{&p.tar}, struct{ io.Reader }{part}, p.buffer); err != nil {
			return err
		}
	}
	return written(f)
}

// written returns an error if the kernel could not write the file to its disk: what was read
// may be something else then. A worker's copy is not flushed. It waits only for writes that
// have begun.
func written(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &os.PathError{Op: "write", Path: f.Name(), Err: err}
	}
	return nil // some file systems have no such call
}

// xattrs returns the attributes that have a place in an archive: a "=" ends the key of a
// record.
func (p *packer) xattrs(f *os.File) ([]tree.Xattr, error) {
	all, err := tree.Xattrs(f)
	kept := all[:0]
	for _, x := range all {
		if strings.Contains(x.Name, "=") {
			p.Skip(f.Name() + ": " + x.Name)
			continue
		}
		kept = append(kept, x)
	}
	return kept, err
}
